"""The options of train_ar."""

from __future__ import annotations

from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.ray_runtime.options import ElasticWorkersConfig
from tatok_pipe.seeds import MAX_SEED
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.loading.mixing import make_mixing, parse_changes
from tatok_pipe.training.options import CheckpointsConfig, LoggingConfig

AUTO, NONE = "auto", "none"  # in place of a tokenizer


@config_dataclass
class InputConfig:
    url: str = option("tatok_out", help="the token dataset, on any URL", is_url=True)
    urls: list[str] = option(
        [], help="in place of url, several token datasets of one tokenizer, which are mixed", is_url=True
    )
    weights: list[float] = option(
        [],
        above=0,
        help="with urls, how often an image of each comes: with 3 and 1 three of the first to one of the second, "
        "counted before `where` and `validation` leave any out; none: every image as often as any other",
    )
    weight_changes: list[str] = option(
        [],
        help="with urls, other weights from a step on, as STEP:WEIGHT:WEIGHT, one for each: [10000:1:1, 50000:1:3]",
    )
    version: int | None = option(
        None,
        at_least=1,
        help="an earlier version of the dataset, while its token shards are there; null: what is there now, or where a "
        "training is resumed what it was begun on",
    )
    versions: list[int] = option(
        [], at_least=0, help="with urls, the version of each; 0: as with version=null; none: of all of them"
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
    condition_urls: list[str] = option(
        [], help="with urls, such a folder for each, in place of condition_url", is_url=True
    )
    condition_column: str | None = option(
        None,
        help="where model.condition is embedding, instead of condition_url: the column that edit_tokens joined to each "
        "dataset, of lists of model.embedding_dim numbers",
    )
    on_dataset_change: str = option(
        "error",
        choices=("error", "restart_epoch"),
        help="a training is resumed and the version of the dataset that it was begun on cannot be read any more: stop "
        "and say so, or begin the next epoch on the dataset as it is now (also where it can be read)",
    )

    def __post_init__(self) -> None:
        if not self.urls:
            for name in ("weights", "weight_changes", "versions", "condition_urls"):
                if getattr(self, name):
                    raise ValueError(f"{name} without urls: expected the datasets to be mixed as urls")
            return
        for name, in_place in (("url", "urls"), ("version", "versions"), ("condition_url", "condition_urls")):
            if getattr(self, name) != getattr(InputConfig, name):
                raise ValueError(f"{name} with urls: expected one of them; with urls give {in_place}")
        for name in ("versions", "condition_urls"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.urls):
                raise ValueError(
                    f"{name}: {len(getattr(self, name))} for {len(self.urls)} urls; give one for each"
                )
        make_mixing([1] * len(self.urls), self.weights, self.changes)

    @property
    def all_urls(self) -> list[str]:
        return self.urls or [self.url]

    @property
    def all_versions(self) -> list[int | None]:
        if not self.urls:
            return [self.version]
        return [version or None for version in self.versions or [0] * len(self.urls)]

    @property
    def all_condition_urls(self) -> list[str]:
        """Where embeddings are, for each dataset; empty where nobody said."""
        return self.condition_urls or ([self.condition_url] if self.condition_url else [])

    @property
    def changes(self) -> dict[int, list[float]]:
        """Weights from a step on."""
        return parse_changes(self.weight_changes)


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
    tokenizer: str = option(
        AUTO,
        help="the tokenizer that the tokens were made with, as generate has it: codes begin as its codewords, as input "
        f"and as output, so that those that look alike begin alike; {NONE}: at random; {AUTO}: {PACKAGED} where the "
        f"tokens are its, else {NONE}",
        is_url=True,
    )
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
        if self.model.condition == "embedding":
            self._check_embeddings()

    def _check_embeddings(self) -> None:
        if bool(self.input.all_condition_urls) == (self.input.condition_column is not None):
            place = (
                "input.condition_urls, a folder of embeddings for each dataset"
                if self.input.urls
                else "input.condition_url, the folder of the embeddings"
            )
            raise ValueError(
                f"model.condition=embedding: expected {place}, or input.condition_column, a joined column, and not both"
            )

    @property
    def rows_per_step(self) -> int:
        """Rows of a step, over all workers."""
        return max(1, round(self.training.batch_tokens / self.packing.row_tokens))
