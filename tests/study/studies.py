"""Small studies: pictures of three classes, and tokenizers that are there, with and without globals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tatok_pipe.commands.study.declaration import declare
from tatok_pipe.commands.study.design import Design, design_study
from tatok_pipe.commands.study.options import StudyConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tests.pictures import Member, encode, write_shard
from tests.tokenizer.conftest import small_config

NUM_CLASSES = 3
ROOT = Path(__file__).parents[2]


def write_images(
    folder: Path, *, num_train: int = 96, num_test: int = 48, num_validation: int = 3
) -> list[str]:
    """The options that name them."""
    write_shard(folder / "train.tar", _members(num_train, seed=0))
    write_shard(folder / "test.tar", _members(num_test, seed=1))
    write_shard(folder / "validation.tar", _members(num_validation, seed=2))
    return [
        f"data.train={folder}/train.tar",
        f"data.test={folder}/test.tar",
        f"data.validation={folder}/validation.tar",
        f"data.num_classes={NUM_CLASSES}",
    ]


def _members(count: int, *, seed: int) -> list[Member]:
    """Bright squares of a colour for each class, of many sizes, on noise: simple pictures and busy ones."""
    random = np.random.default_rng(seed)
    members = []
    for number in range(count):
        label, side = number % NUM_CLASSES, int(random.integers(4, 28))
        pixels = random.integers(0, 1 + int(random.integers(120)), (32, 32, 3)).astype(np.uint8)
        pixels[:side, :side, label] = 255
        key = f"{seed}-{number:04d}"
        members += [(f"{key}.png", encode(Image.fromarray(pixels))), (f"{key}.cls", str(label).encode())]
    return members


def write_tokenizer(folder: Path, *, num_globals: int = 3, is_calibrated: bool = True) -> str:
    torch.manual_seed(num_globals)
    model = TaTok(small_config("vq", num_globals=num_globals)).eval()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ladders = calibrate_ladders(model, images) if is_calibrated else {}
    save_tokenizer(str(folder), model, ladders=ladders, training={})
    return str(folder)


def load_study(words: list[str]) -> StudyConfig:
    return load_config(StudyConfig, words, prog="", description="")


def design(words: list[str]) -> Design:
    return design_study(declare(load_study(words)))
