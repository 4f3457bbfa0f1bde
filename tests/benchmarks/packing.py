"""Packing of token sequences into rows: ours beside the package seqpacker, where it is installed.

Both sides get the same windows of lengths, in turn, several times. seqpacker keeps no order at random, which training
needs, so its speed is shown bare and with the shuffling before and after that would have to be added.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tatok_pipe.tokens.loading.packing import pack, permutation
from tests.benchmarks.measure import Results, from_pairs, timed

ROW_TOKENS = 4096
# Every twentieth part of the numbers of kept patches of CIFAR-10 images, with 16 globals.
CIFAR = (3, 29, 40, 51, 58, 64, 72, 78, 83, 90, 96, 102, 108, 114, 120, 128, 135, 144, 154, 173, 229)

Pack = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # lengths -> (sequences row after row, starts)


def ours(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    packing = pack(lengths, row_tokens=ROW_TOKENS, random=np.random.default_rng(1))
    return packing.sequences, packing.starts


def bare(packer: Any) -> Pack:
    def run(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sequences, ends = packer.pack_flat(lengths)
        return sequences, np.concatenate([[0], ends, [len(lengths)]])

    return run


def shuffled(packer: Any) -> Pack:
    """The same with lengths shuffled before, and rows and their sequences after."""

    def run(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(1)
        before = permutation(len(lengths), random)
        sequences, starts = bare(packer)(lengths[before])
        rows = np.repeat(permutation(len(starts) - 1, random), np.diff(starts))
        after = permutation(len(lengths), random)
        order = after[np.argsort(rows[after], kind="stable")]
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows))])
        return before[sequences][order], starts

    return run


def check(lengths: np.ndarray, sequences: np.ndarray, starts: np.ndarray) -> None:
    assert np.array_equal(np.sort(sequences), np.arange(len(lengths)))
    assert np.add.reduceat(lengths[sequences], starts[:-1]).max() <= ROW_TOKENS


def run(results: Results) -> None:
    random = np.random.default_rng(0)
    kept = np.interp(random.random(65_536), np.linspace(0, 1, len(CIFAR)), CIFAR).round().astype(np.int64)
    corpora = {
        "uniform": ("32 to 256, uniform", random.integers(32, 257, 32_768)),
        "cifar": ("of CIFAR-10", 17 + kept[:32_768]),
        "wide": ("1 to 4,096, uniform", random.integers(1, ROW_TOKENS + 1, 32_768)),
    }
    others: dict[str, Pack] = {}
    try:
        packer = importlib.import_module("seqpacker").Packer(ROW_TOKENS, "obfd")
        others = {"seqpacker": bare(packer), "seqpacker + shuffling": shuffled(packer)}
    except ImportError:
        results.note("seqpacker: not installed (its source distribution wants a Rust toolchain)")
    for key, (name, lengths) in corpora.items():
        sequences, starts = ours(lengths)
        check(lengths, sequences, starts)
        again = ours(lengths)
        if not (np.array_equal(sequences, again[0]) and np.array_equal(starts, again[1])):
            raise SystemExit("packing the same lengths again gave other rows")
        num_tokens = int(lengths.sum())
        bound = num_tokens / (-(-num_tokens // ROW_TOKENS) * ROW_TOKENS)
        fill = num_tokens / ((len(starts) - 1) * ROW_TOKENS)
        results.add(
            from_pairs(
                f"packing/fill/{key}",
                f"fill of rows of {ROW_TOKENS}, lengths {name} / what whole rows allow",
                [(fill, bound)],
                unit="share",
            )
        )
        padded = float(lengths.mean() / lengths.max())
        results.note(f"padded to the longest: fill {padded:.3f}")
        for other_name, other in others.items():
            check(lengths, *other(lengths))
            results.compare(
                f"packing/{other_name}/{key}", f"packing 32,768 lengths {name} / {other_name}",
                timed(len(lengths), lambda lengths=lengths: ours(lengths)),
                timed(len(lengths), lambda lengths=lengths, other=other: other(lengths)),
                unit="sequences/s",
            )  # fmt: skip
