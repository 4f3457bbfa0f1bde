"""The options of calibrate."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import CheckpointConfig


@config_dataclass
class InputConfig:
    shards: str = option(
        "", help="image shards to calibrate on, like those to be tokenized: glob, braces, @list.txt or directory, on "
        "any URL; or a folder of images, or a manifest", is_url=True,
    )  # fmt: skip
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    max_images: int = option(256, at_least=1, help="images, as many of each shard", unit="images")


@config_dataclass
class ValidationConfig:
    shards: str = option(
        "",
        help="image shards to measure on, none of input.shards, for the model card; without them it keeps the figures "
        "of the training, with the filters of that time",
        is_url=True,
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)


@config_dataclass
class OutputConfig:
    url: str = option(
        "",
        help="folder for the checkpoint with the new calibration, on any URL; may be where it lies",
        is_url=True,
    )


@config_dataclass
class CalibrateConfig:
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to calibrate")
    input: InputConfig = section(InputConfig, help="what to calibrate it on")
    validation: ValidationConfig = section(ValidationConfig, help="what to measure it on")
    output: OutputConfig = section(OutputConfig, help="where the result goes")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(0, at_least=0, help="seed of the random control in the figures")
