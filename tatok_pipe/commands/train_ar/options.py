"""The options of train_ar."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tatok_pipe.config.options import check_choices, option, section
from tatok_pipe.ray_runtime.options import ElasticWorkersConfig
from tatok_pipe.seeds import MAX_SEED
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig


@dataclass(frozen=True)
class InputConfig:
    url: str = option("tatok_out", help="the token dataset, on any URL", is_url=True)
    condition_url: str | None = option(
        None,
        help="where model.condition is embedding: folder with a Parquet file for each token shard, named like it, with "
        "columns `key` and `embedding`: lists of model.embedding_dim numbers, or tensors",
        is_url=True,
    )
    on_dataset_change: str = option(
        "error",
        choices=("error", "restart_epoch"),
        help="a training is resumed and the dataset is not the one it was begun on: stop and say so, or begin the next "
        "epoch on the dataset as it is now",
    )

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class OutputConfig:
    url: str = option(
        "tatok_generator",
        help="folder for checkpoints/, tensorboard/ and the finished generator/, on any URL",
        is_url=True,
    )


@dataclass(frozen=True)
class PackingConfig:
    row_tokens: int = option(4096, help="length of a packed row", unit="elements")
    window_sequences: int = option(
        32_768,
        help="sequences that are shuffled and packed together, and read ahead; about 2 KB of memory each, twice",
        unit="sequences per worker",
    )

    def __post_init__(self) -> None:
        for name in ("row_tokens", "window_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class ValidationConfig:
    share: float = option(
        0.01,
        help="of the images, those that are held out: chosen by a hash of their key, so all crops of an image are",
        unit="share of images",
    )
    every_steps: int = option(1_000, help="held-out losses this often, and at the end", unit="steps")
    max_steps: int = option(50, help="batches of held-out images, each the size of a step", unit="steps")

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}: expected a share of 0 or more, and below 1")
        for name in ("every_steps", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class CheckpointsConfig:
    every_steps: int = option(1_000, help="a checkpoint to resume from this often", unit="steps")
    keep: int = option(3, help="the newest ones that are kept", unit="checkpoints")
    upload: str = option(
        "async",
        choices=("async", "sync"),
        help="training goes on while a checkpoint is uploaded, or waits; before a node leaves, on a signal and at the "
        "end it always waits",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("every_steps", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class LoggingConfig:
    every_steps: int = option(20, help="a line of losses and speed this often", unit="steps")

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps}: expected at least 1")


@dataclass(frozen=True)
class TrainArConfig:
    input: InputConfig = section(InputConfig, help="what to train on")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    model: GeneratorConfig = section(GeneratorConfig, help="the generator")
    packing: PackingConfig = section(PackingConfig, help="sequences of many lengths in rows of one")
    training: TrainingConfig = section(TrainingConfig, help="how it is trained")
    drop_condition: float = option(
        0.1,
        help="sequences whose condition is hidden, so that the generator can be guided (classifier-free); and, drawn "
        "apart, those whose budget is",
        unit="share of sequences",
    )
    validation: ValidationConfig = section(ValidationConfig, help="held-out losses")
    checkpoints: CheckpointsConfig = section(CheckpointsConfig, help="what a restart goes on from")
    workers: ElasticWorkersConfig = section(ElasticWorkersConfig, help="Ray Train workers")
    logging: LoggingConfig = section(LoggingConfig, help="what is printed")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(0, help="seed of weights, order, hidden conditions and dropout")
    dry_run: bool = option(False, help="print sizes, memory and steps, and train nothing")

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed={self.seed}: expected 0 to {MAX_SEED}")
        if not 0 <= self.drop_condition < 1:
            raise ValueError(
                f"drop_condition={self.drop_condition}: expected a share of 0 or more, and below 1"
            )
        if self.model.condition == "embedding" and not self.input.condition_url:
            raise ValueError(
                "model.condition=embedding: expected input.condition_url, the embeddings' folder"
            )

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, over all workers."""
        return max(1, round(self.training.batch_tokens / self.packing.row_tokens))
