"""In what order the sequences of a token dataset are trained on: epochs, cut into windows of whole row groups. (How
several datasets are mixed: mix_planner.py.)

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
    shard_begin: int  # number of the shard's first row: rows of all sources, in turn, and of their shards in name order
    source: int = 0  # which of the datasets that are mixed

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


class RowGroups:
    """The row groups of all shards, numbered: sources in their order, shards of each by name. `sources` has the shards
    of each dataset that is trained on."""

    def __init__(self, sources: Sequence[Sequence[ShardRows]]) -> None:
        self._shards = [
            (source, shard)
            for source, shards in enumerate(sources)
            for shard in sorted(shards, key=lambda shard: shard.name)
            if shard.num_rows
        ]
        rows = np.array([shard.num_rows for _, shard in self._shards], np.int64)
        groups = -(-rows // ROW_GROUP_ROWS)  # of each shard
        self._first_rows = np.cumsum(rows) - rows  # (num_shards,)
        self._shard = np.repeat(np.arange(len(rows)), groups)  # (num_groups,)
        self._number = np.arange(groups.sum()) - np.repeat(np.cumsum(groups) - groups, groups)
        self.rows = np.minimum(
            rows[self._shard] - self._number * ROW_GROUP_ROWS, ROW_GROUP_ROWS
        )  # (num_groups,)
        sources_of_groups = np.array([source for source, _ in self._shards], np.int64)[self._shard]
        self.source_groups = np.searchsorted(
            sources_of_groups, np.arange(len(sources) + 1)
        )  # the first of each
        self.source_rows = np.concatenate([[0], np.cumsum(self.rows)])[
            self.source_groups
        ]  # (num_sources + 1,)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        return int(self.source_rows[-1])

    def group(self, index: int) -> RowGroup:
        """One of them by its number."""
        source, shard = self._shards[int(self._shard[index])]
        return RowGroup(
            shard=shard.name,
            shard_rows=shard.num_rows,
            number=int(self._number[index]),
            num_rows=int(self.rows[index]),
            shard_begin=int(self._first_rows[self._shard[index]]),
            source=source,
        )


class EpochPlanner:
    """The windows of every epoch over row groups.

    `window_rows` is about how many rows a window has; it is cut between row groups, so that it holds at least one.
    """

    def __init__(self, row_groups: RowGroups, *, window_rows: int, seed: int) -> None:
        self._groups = row_groups
        self.seed = seed
        self.num_rows = row_groups.num_rows
        self.source_rows = row_groups.source_rows
        self.num_windows = min(max(1, round(self.num_rows / window_rows)), len(row_groups))

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The windows of an epoch, in order: numbers of row groups, for `groups`. No window is empty."""
        order = permutation(len(self._groups), generator(self.seed, epoch, 0, Draw.GROUPS))
        rows = self._groups.rows[order]
        middles = np.cumsum(rows) - rows / 2
        window = (middles * (self.num_windows / max(1, self.num_rows))).astype(np.int64)
        return np.split(order, np.flatnonzero(np.diff(window)) + 1) if len(order) else []

    def groups(self, window: np.ndarray) -> list[RowGroup]:
        """The row groups of one of the `windows`."""
        return [self._groups.group(index) for index in window.tolist()]


def generator(seed: int, epoch: int, window: int, draw: Draw, *more: int) -> np.random.Generator:
    """The random numbers of one window for one purpose; `more` tells those apart that share all that."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence((seed, epoch, window, int(draw), *more)))
    )


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
