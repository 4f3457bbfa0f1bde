"""The options of pack_images."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.shared_options import ProgressConfig
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig

LAYOUTS = {"webdataset": ".tar", "parquet": ".parquet"}  # and the ends of the names of their shards


@config_dataclass
class PackInputConfig:
    shards: str = option(
        "",
        help="what to pack, on any URL: a folder of images, whose folders, where it has some, are the classes; a "
        "manifest, a .jsonl or Parquet file with a column url that lists images; zip archives, tars, compressed or "
        "not, or Parquet files by glob, braces, @list.txt or folder",
        is_url=True,
    )
    images_per_part: int = option(
        IMAGES_PER_PART,
        at_least=1,
        help="images of a shard that is made of a folder or manifest",
        unit="images",
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    limits: ShardLimits = section(ShardLimits, help="what is accepted of a shard")


@config_dataclass
class PackOutputConfig:
    url: str = option("tatok_shards", help="folder of the shards, on any URL", is_url=True)
    layout: str = option(
        "webdataset",
        choices=tuple(LAYOUTS),
        help="webdataset: tars of KEY.jpg, KEY.cls, KEY.txt, KEY.json; parquet: as Hugging Face datasets writes images",
    )


@config_dataclass
class PackImagesConfig:
    input: PackInputConfig = section(PackInputConfig, help="what to pack")
    output: PackOutputConfig = section(PackOutputConfig, help="where the shards go")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors; each does whole shards")
    failures: FailuresConfig = section(FailuresConfig, help="what is tried again, and for how long")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
