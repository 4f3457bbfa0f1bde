"""The options of train_ar."""

from __future__ import annotations

from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.ray_runtime.options import ElasticWorkersConfig
from tatok_pipe.seeds import MAX_SEED
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.training.options import CheckpointsConfig, LoggingConfig


@config_dataclass
class InputConfig:
    url: str = option("tatok_out", help="the token dataset, on any URL", is_url=True)
    version: int | None = option(
        None,
        at_least=1,
        help="an earlier version of the dataset, while its token shards are there; null: what is there now, or where a "
        "training is resumed what it was begun on",
    )
    where: str | None = option(
        None,
        help="train on the rows alone of which this is true, as 'aesthetic > 5 and label in (3, 7)': their own columns "
        "and those that edit_tokens joined, as in its remove.where",
    )
    condition_url: str | None = option(
        None,
        help="where model.condition is embedding: folder with a Parquet file for each token shard, named like it, with "
        "columns `key` and `embedding`: lists of model.embedding_dim numbers, or tensors",
        is_url=True,
    )
    condition_column: str | None = option(
        None,
        help="where model.condition is embedding, instead of condition_url: the column that edit_tokens joined to the "
        "dataset, of lists of model.embedding_dim numbers",
    )
    on_dataset_change: str = option(
        "error",
        choices=("error", "restart_epoch"),
        help="a training is resumed and the version of the dataset that it was begun on cannot be read any more: stop "
        "and say so, or begin the next epoch on the dataset as it is now (also where it can be read)",
    )


@config_dataclass
class OutputConfig:
    url: str = option(
        "tatok_generator",
        help="folder for checkpoints/, tensorboard/ and the finished generator/, on any URL",
        is_url=True,
    )


@config_dataclass
class PackingConfig:
    row_tokens: int = option(4096, at_least=1, help="length of a packed row", unit="elements")
    window_sequences: int = option(
        32_768,
        at_least=1,
        help="sequences that are shuffled and packed together, and read ahead; about 2 KB of memory each, twice",
        unit="sequences per worker",
    )


@config_dataclass
class ValidationConfig:
    share: float = option(
        0.01,
        at_least=0,
        below=1,
        help="of the images, those that are held out: chosen by a hash of their key, so all crops of an image are",
        unit="share of images",
    )
    every_steps: int = option(
        1_000, at_least=1, help="held-out losses this often, and at the end", unit="steps"
    )
    max_steps: int = option(
        50, at_least=1, help="batches of held-out images, each the size of a step", unit="steps"
    )


@config_dataclass
class TrainArConfig:
    input: InputConfig = section(InputConfig, help="what to train on")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    model: GeneratorConfig = section(GeneratorConfig, help="the generator")
    packing: PackingConfig = section(PackingConfig, help="sequences of many lengths in rows of one")
    training: TrainingConfig = section(TrainingConfig, help="how it is trained")
    drop_condition: float = option(
        0.1,
        at_least=0,
        below=1,
        help="sequences whose condition is hidden, so that the generator can be guided (classifier-free); and, drawn "
        "apart, those whose budget is",
        unit="share of sequences",
    )
    validation: ValidationConfig = section(ValidationConfig, help="held-out losses")
    checkpoints: CheckpointsConfig = section(CheckpointsConfig, help="what a restart goes on from")
    workers: ElasticWorkersConfig = section(ElasticWorkersConfig, help="Ray Train workers")
    logging: LoggingConfig = section(LoggingConfig, help="what is printed")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(
        0, at_least=0, at_most=MAX_SEED, help="seed of weights, order, hidden conditions and dropout"
    )
    dry_run: bool = option(False, help="print sizes, memory and steps, and train nothing")

    def __post_init__(self) -> None:
        given = (self.input.condition_url, self.input.condition_column)
        if self.model.condition == "embedding" and sum(each is not None for each in given) != 1:
            raise ValueError(
                "model.condition=embedding: expected input.condition_url, the embeddings' folder, or "
                "input.condition_column, a joined column, and not both"
            )

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, over all workers."""
        return max(1, round(self.training.batch_tokens / self.packing.row_tokens))
