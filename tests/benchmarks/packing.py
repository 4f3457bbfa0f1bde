"""Packing of token sequences into rows: ours beside the package seqpacker, where it is installed.

Both sides get the same windows of lengths, in turn, several times. seqpacker keeps no order at random, which training
needs, so its speed is shown bare and with the shuffling before and after that would have to be added.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tatok_pipe.tokens.packing import pack, permutation

REPEATS = 9
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


def main() -> int:
    sides: dict[str, Pack] = {"ours": ours}
    try:
        packer = importlib.import_module("seqpacker").Packer(ROW_TOKENS, "obfd")
        sides |= {"seqpacker": bare(packer), "seqpacker + shuffling": shuffled(packer)}
    except ImportError as error:
        print(f"without seqpacker: {error}")
    random = np.random.default_rng(0)
    kept = np.interp(random.random(65_536), np.linspace(0, 1, len(CIFAR)), CIFAR).round().astype(np.int64)
    corpora = {
        "uniform 32 to 256, 32,768": random.integers(32, 257, 32_768),
        "uniform 32 to 256, 262,144": random.integers(32, 257, 262_144),
        "CIFAR-10, 32,768": 17 + kept[:32_768],
        "CIFAR-10, 1,500": 17 + kept[:1500],
        "uniform 1 to 4096, 32,768": random.integers(1, ROW_TOKENS + 1, 32_768),
    }
    print(f"{'lengths':>28} {'':>22} {'M sequences/s':>14} {'rows':>7} {'bound':>7} {'fill':>8} same again")
    for name, lengths in corpora.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        results = {side: function(lengths) for side, function in sides.items()}
        is_same = dict.fromkeys(sides, True)
        for _ in range(REPEATS):
            for side, function in sides.items():
                start = time.perf_counter()
                result = function(lengths)
                seconds[side].append(time.perf_counter() - start)
                is_same[side] &= all(map(np.array_equal, result, results[side]))
        for side, (sequences, starts) in results.items():
            check(lengths, sequences, starts)
            speed = len(lengths) / statistics.median(seconds[side]) / 1e6
            num_rows, bound = len(starts) - 1, -(-int(lengths.sum()) // ROW_TOKENS)
            fill = lengths.sum() / (num_rows * ROW_TOKENS)
            print(f"{name:>28} {side:>22} {speed:14.2f} {num_rows:7d} {bound:7d} {fill:8.2%} {is_same[side]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
