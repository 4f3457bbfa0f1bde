"""In what order the sequences of a token dataset are trained on: epochs, cut into windows of whole row groups.

An epoch takes the row groups of all shards in random order. Neighbours in that order make a window: it is read into
memory, shuffled and packed as one. Everything follows from (seed, epoch, window), so that any process can begin
anywhere. Nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from tatok_pipe.tokens.format import ROW_GROUP_ROWS
from tatok_pipe.tokens.loading.packing import permutation


@dataclass(frozen=True, slots=True)
class ShardRows:
    """A token shard as the planning knows it."""

    name: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a token shard."""

    shard: str
    shard_rows: int  # of the whole shard
    number: int  # in the shard
    num_rows: int
    shard_begin: int  # number of the shard's first row in the dataset: rows of all shards in name order

    @property
    def first_row(self) -> int:
        """Number of its first row in the shard."""
        return self.number * ROW_GROUP_ROWS


class Draw(IntEnum):
    """What random numbers are for; none share a stream."""

    GROUPS = 0
    PACKING = 1
    CONDITIONS = 2
    BUDGETS = 3


class EpochPlanner:
    """The windows of every epoch over a list of shards.

    `window_rows` is about how many rows a window has; it is cut between row groups, so that it holds at least one.
    """

    def __init__(self, shards: Sequence[ShardRows], *, window_rows: int, seed: int) -> None:
        self._shards = sorted((shard for shard in shards if shard.num_rows), key=lambda shard: shard.name)
        self.seed = seed
        rows = np.array([shard.num_rows for shard in self._shards], np.int64)
        groups = -(-rows // ROW_GROUP_ROWS)  # of each shard
        self._first_rows = np.cumsum(rows) - rows  # (num_shards,)
        self._shard = np.repeat(np.arange(len(rows)), groups)  # (num_groups,)
        self._number = np.arange(groups.sum()) - np.repeat(np.cumsum(groups) - groups, groups)
        self._rows = np.minimum(rows[self._shard] - self._number * ROW_GROUP_ROWS, ROW_GROUP_ROWS)
        self.num_rows = int(rows.sum())
        self.num_windows = min(max(1, round(self.num_rows / window_rows)), len(self._rows))

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The windows of an epoch, in order: numbers of row groups, for `groups`. No window is empty."""
        order = permutation(len(self._rows), generator(self.seed, epoch, 0, Draw.GROUPS))
        rows = self._rows[order]
        middles = np.cumsum(rows) - rows / 2
        window = (middles * (self.num_windows / max(1, self.num_rows))).astype(np.int64)
        return np.split(order, np.flatnonzero(np.diff(window)) + 1) if len(order) else []

    def groups(self, window: np.ndarray) -> list[RowGroup]:
        """The row groups of one of the `windows`."""
        return [self._group(index) for index in window.tolist()]

    def _group(self, index: int) -> RowGroup:
        shard, number = int(self._shard[index]), int(self._number[index])
        return RowGroup(
            shard=self._shards[shard].name,
            shard_rows=self._shards[shard].num_rows,
            number=number,
            num_rows=int(self._rows[index]),
            shard_begin=int(self._first_rows[shard]),
        )


def generator(seed: int, epoch: int, window: int, draw: Draw) -> np.random.Generator:
    """The random numbers of one window for one purpose."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, window, int(draw)))))


def random_shares(count: int, random: np.random.Generator) -> np.ndarray:
    """Uniform in [0, 1), (count,) float64; from raw bits for the reason that `permutation` gives."""
    return (random.bit_generator.random_raw(count) >> np.uint64(11)) * 2.0**-53


def is_held_out(keys: Sequence[bytes], share: float) -> np.ndarray:
    """Which samples are held out from training, (n,) bool.

    It depends on the key alone: all crops of an image are on one side, and stay there while the dataset grows.
    """
    hashes = np.fromiter(map(zlib.crc32, keys), np.float64, len(keys))
    return hashes / 2.0**32 < share


def stream_digest(shards: Sequence[ShardRows], **settings: int | float | str) -> str:
    """What two loaders have in common that take the same sequences in the same order."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for shard in sorted(shards, key=lambda shard: shard.name):
        digest.update(f"\n{shard.num_rows} {shard.name}".encode())
    return digest.hexdigest()
