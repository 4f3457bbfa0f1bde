"""The options of pack_images."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.commands.tokenize_corpus.options import ProgressConfig
from tatok_pipe.config.options import check_choices, option, section
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig

LAYOUTS = {"webdataset": ".tar", "parquet": ".parquet"}  # and the ends of the names of their shards


@dataclass(frozen=True)
class PackInputConfig:
    shards: str = option(
        "",
        help="what to pack, on any URL: a folder of images, whose folders, where it has some, are the classes; a "
        "manifest, a .jsonl or Parquet file with a column url that lists images; zip archives, tars, compressed or "
        "not, or Parquet files by glob, braces, @list.txt or folder",
        is_url=True,
    )
    images_per_part: int = option(
        IMAGES_PER_PART, help="images of a shard that is made of a folder or manifest", unit="images"
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    limits: ShardLimits = section(ShardLimits, help="what is accepted of a shard")

    def __post_init__(self) -> None:
        if self.images_per_part < 1:
            raise ValueError(f"images_per_part={self.images_per_part}: expected at least 1")


@dataclass(frozen=True)
class PackOutputConfig:
    url: str = option("tatok_shards", help="folder of the shards, on any URL", is_url=True)
    layout: str = option(
        "webdataset",
        choices=tuple(LAYOUTS),
        help="webdataset: tars of KEY.jpg, KEY.cls, KEY.txt, KEY.json; parquet: as Hugging Face datasets writes images",
    )

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class PackImagesConfig:
    input: PackInputConfig = section(PackInputConfig, help="what to pack")
    output: PackOutputConfig = section(PackOutputConfig, help="where the shards go")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors; each does whole shards")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and for how long")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
