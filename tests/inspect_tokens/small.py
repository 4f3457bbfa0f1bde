"""Datasets that a small random tokenizer made of a few image shards, as tokenize_corpus would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import (
    DTFConfig,
    GlobalQuantizerConfig,
    GridStackConfig,
    StackConfig,
    TaTokConfig,
)
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.summary import write_summary

STACK = StackConfig(width=32, depth=1, heads=2)
GRID = GridStackConfig(width=32, depth=1, heads=2, attend_every=1)
# A shard of which no sample gives an image fails, so there is one.
BAD_SAMPLES = {
    "bad_1.jpg": b"\xff\xd8\xff and no more",
    "bad_2.jpg": b"<html>",
    "bad_2.cls": b"3",
    "good.jpg": held_out_crops(crops_per_source=1)[0].image,
}


@dataclass(frozen=True)
class Made:
    url: str  # of the dataset
    checkpoint: str
    shards: list[str]


def save_random_tokenizer(url: str, *, seed: int) -> str:
    torch.manual_seed(seed)
    codebook = GlobalQuantizerConfig(codebook_size=64)
    model = TaTok(TaTokConfig(32, 8, 2, 0, GRID, GRID, STACK, codebook, codebook))
    decoded = [
        decode_image(sample.image, PreprocessConfig(32))[0] for sample in held_out_crops(crops_per_source=4)
    ]
    ladders = calibrate_ladders(model.eval(), to_model_input(np.stack(decoded), "cpu"))
    return save_tokenizer(url, model, ladders=ladders, training={})


def tokenize(url: str, checkpoint: str, shards: list[str], *, planned: list[str] | None = None) -> None:
    """What tokenize_corpus does, in this process."""
    tokenizer = load_tokenizer(checkpoint)
    kept = tokenizer.filter(DTFConfig(target_tokens=10))
    spec = token_spec(tokenizer, kept, encoding={})
    create_or_check(url, spec, {"tokenizer": {"checkpoint": checkpoint}, "source": "demo"})
    job = TokenizeJob(
        checkpoint, url, spec, kept, PreprocessConfig(32), ShardLimits(), "fp32", 4, True, False
    )  # fmt: skip
    worker = ShardTokenizer(job, device="cpu", num_threads=1)
    failed = {result.url: result.error for result in map(worker, shards) if result.error}
    names = [token_shard_name(shard) for shard in (shards if planned is None else planned)]
    write_summary(url, planned=names, failed=failed)
