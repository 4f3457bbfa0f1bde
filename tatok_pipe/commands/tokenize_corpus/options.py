"""The options of tokenize_corpus."""

from __future__ import annotations

from typing import Literal

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import DEMO, DEMO_FOLDER, ProgressConfig
from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import IMAGES_PER_PART, PILLOW_PIXEL_LIMIT, PreprocessConfig
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import CheckpointConfig, DTFConfig

NO_NAMES = "none"
OnSourceChange = Literal["error", "report", "retokenize", "ignore"]
ON_SOURCE_CHANGE: tuple[OnSourceChange, ...] = ("error", "report", "retokenize", "ignore")
OnMoved = Literal["error", "map", "add"]
ON_MOVED: tuple[OnMoved, ...] = ("error", "map", "add")
Only = Literal["all", "quarantined"]
ONLY: tuple[Only, ...] = ("all", "quarantined")


@config_dataclass
class InputConfig:
    shards: str = option(
        DEMO,
        help="image shards (WebDataset .tar, or Parquet with an image column) on any URL: glob, {000..999} braces, "
        "@list.txt or a folder; or a folder of loose images, whose folders, where it has some, are the classes; or a "
        f"manifest, a .jsonl or Parquet file with a column url that lists images; {DEMO!r} makes a small corpus in "
        f"./{DEMO_FOLDER}",
        is_url=True,
    )
    images_per_part: int = option(
        IMAGES_PER_PART,
        at_least=1,
        help="a folder of loose images, or a manifest, is read in parts of this size",
        unit="images",
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    on_source_change: str = option(
        "error",
        choices=ON_SOURCE_CHANGE,
        help="what to do with image shards that changed (size, ETag, or content on local disk) since they were "
        "tokenized: stop and say so, do the others and end with exit code 1, replace their tokens, or leave them",
    )
    on_moved: str = option(
        "error",
        choices=ON_MOVED,
        help="what to do with image shards that were tokenized under another path, as name, size and content tell: "
        "stop and say so, take the tokens that are there for theirs, or tokenize them a second time",
    )
    only: str = option(
        "all",
        choices=ONLY,
        help="all: image shards without a token shard; quarantined: those of which samples were quarantined, whose "
        "token shards are made anew and replaced, each when it is whole, and no others",
    )
    class_names: str | None = option(
        None,
        help="names of the classes: @names.txt with a name a line, class 0 first; a token dataset, for the names that "
        f"it has; {NO_NAMES!r}; null: as the dataset was begun, a new one those of the first image shard, where it is "
        "Parquet with a ClassLabel of Hugging Face datasets",
        is_url=True,
    )
    limits: ShardLimits = section(ShardLimits, help="what is accepted of a shard")
    max_pixels: int = option(
        PreprocessConfig().max_pixels,
        at_least=1,
        at_most=PILLOW_PIXEL_LIMIT,
        help="images that declare more are quarantined undecoded",
        unit="pixels, width × height",
    )
    crops: CropConfig = section(CropConfig, help="what is cut out of an image; every crop is a row")

    def __post_init__(self) -> None:
        if self.only == "quarantined" and self.on_source_change == "retokenize":
            raise ValueError(
                "on_source_change=retokenize: expected error, report or ignore with only=quarantined, which makes its "
                "token shards anew whether their image shards changed or not, and no others"
            )


@config_dataclass
class OutputConfig:
    url: str = option("tatok_out", help="folder of the token dataset, on any URL", is_url=True)


@config_dataclass
class EncodeConfig:
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the model; auto: as the dataset was begun, a new one bf16 on GPUs and fp32 on CPUs",
    )
    batch_size: int | None = option(
        None, at_least=1,
        help="images encoded at once; null: as the dataset was begun, a new one 128 on GPUs, 16 on CPUs",
        unit="images per GPU or CPU thread",
    )  # fmt: skip


@config_dataclass
class RecordConfig:
    mutual_information: bool = option(
        False, help="estimate I(G; P) of every image, nats; one more pass of the entropy model"
    )
    patch_entropy: bool = option(False, help="store the entropies of all patches, nats as float32")
    scores: bool = option(
        False,
        help="store what losing each patch costs by dtf.score, as float16, on which dtf.rule then decides, with the "
        "entropies of all patches; where dtf.rule=none keeps all of them, edit_tokens filters them again by any rule, "
        "without encoding",
    )


@config_dataclass
class TokenizeCorpusConfig:
    input: InputConfig = section(InputConfig, help="what to tokenize")
    output: OutputConfig = section(OutputConfig, help="where the tokens go")
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to tokenize with")
    dtf: DTFConfig = section(DTFConfig, help="Dynamic Token Filtering: which patch tokens are kept")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors; each does whole shards")
    encode: EncodeConfig = section(EncodeConfig, help="how the model runs")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and for how long")
    record: RecordConfig = section(RecordConfig, help="optional columns")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    dry_run: bool = option(False, help="print the plan with an estimate of time and size, and write nothing")
