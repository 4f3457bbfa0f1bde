"""The options of calibrate."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.config.options import option, section
from tatok_pipe.storage.settings import OTHER_STORES_HELP, STORAGE_HELP, StorageConfig
from tatok_pipe.tokenizer.options import PACKAGED


@dataclass(frozen=True)
class CheckpointConfig:
    checkpoint: str = option(
        PACKAGED,
        help=f"output.url of train_tokenizer, or its tokenizer/, on any URL, or {PACKAGED!r}",
        is_url=True,
    )


@dataclass(frozen=True)
class InputConfig:
    shards: str = option(
        "", help="image shards to calibrate on, like those to be tokenized: glob, braces, @list.txt or directory, on "
        "any URL; or a folder of images, or a manifest", is_url=True,
    )  # fmt: skip
    other_stores: bool = option(False, help=OTHER_STORES_HELP)
    max_images: int = option(256, help="images, as many of each shard", unit="images")

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise ValueError(f"max_images={self.max_images}: expected at least 1")


@dataclass(frozen=True)
class ValidationConfig:
    shards: str = option(
        "",
        help="image shards to measure on, none of input.shards, for the model card; without them it keeps the figures "
        "of the training, with the filters of that time",
        is_url=True,
    )
    other_stores: bool = option(False, help=OTHER_STORES_HELP)


@dataclass(frozen=True)
class OutputConfig:
    url: str = option(
        "",
        help="folder for the checkpoint with the new calibration, on any URL; may be where it lies",
        is_url=True,
    )


@dataclass(frozen=True)
class CalibrateConfig:
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to calibrate")
    input: InputConfig = section(InputConfig, help="what to calibrate it on")
    validation: ValidationConfig = section(ValidationConfig, help="what to measure it on")
    output: OutputConfig = section(OutputConfig, help="where the result goes")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)
    seed: int = option(0, help="seed of the random control in the figures")

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: expected 0 or more")
