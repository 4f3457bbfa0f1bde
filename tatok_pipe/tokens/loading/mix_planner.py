"""In what order the sequences of several token datasets are trained on: each dataset goes through shuffled epochs of
its own, and a window takes from each as many rows as its weight says.

A window is a number of draws. Which row a draw is follows from (seed, how many rows each dataset has given before), so
that a place in the mix is a handful of numbers. Nothing here touches a disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tatok_pipe.tokens.loading.mixing import Mixing, draw_order
from tatok_pipe.tokens.loading.packing import permutation
from tatok_pipe.tokens.loading.windows import Draw, RowGroup, RowGroups, generator


@dataclass(frozen=True)
class MixPosition:
    """Where a window of a mix begins. Tuples have a number for each source."""

    drawn: tuple[int, ...]  # rows that were taken before this window
    stage: int  # how many changes of the weights have come
    stage_drawn: tuple[int, ...]  # of `drawn`, those since the weights changed last
    size: int = 0  # draws of this window, where it was cut short; 0: all

    def to_json(self) -> dict[str, Any]:
        """JSON types; `from_json` is the inverse."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> MixPosition:
        return cls(tuple(state["drawn"]), state["stage"], tuple(state["stage_drawn"]), state["size"])


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a row group, in order."""

    group: RowGroup
    start: int
    stop: int

    @property
    def numbers(self) -> tuple[int, int]:
        """Of its first row, and of that after its last, among the rows of all sources."""
        first = self.group.shard_begin + self.group.first_row
        return first + self.start, first + self.stop


class MixPlanner:
    """The windows of a mix, of `window_rows` draws, or of as many rows as all sources have, where that is less."""

    def __init__(self, row_groups: RowGroups, mixing: Mixing, *, window_rows: int, seed: int) -> None:
        self.mixing = mixing
        self.seed = seed
        self.num_rows = row_groups.num_rows
        self.source_rows = row_groups.source_rows  # (num_sources + 1,), cumulative
        self._groups = row_groups
        self._window_rows = min(window_rows, self.num_rows)
        self._walks: dict[
            int, tuple[tuple[int, int], np.ndarray, np.ndarray]
        ] = {}  # the last epoch of each source

    def start(self) -> MixPosition:
        zeros = (0,) * (len(self.source_rows) - 1)
        return MixPosition(zeros, 0, zeros)

    def enter(self, position: MixPosition, step: int) -> MixPosition:
        """The same place, where a new window begins in this step: with the weights of now."""
        stage = self.mixing.stage(step)
        if stage == position.stage:
            return position
        return replace(position, stage=stage, stage_drawn=(0,) * len(position.drawn))

    def order(self, position: MixPosition) -> np.ndarray:
        """The sources of the window's draws, (size,) int64."""
        weights = self.mixing.weights_of(position.stage)
        return draw_order(weights, position.stage_drawn, position.size or self._window_rows)

    def pieces(self, position: MixPosition, order: np.ndarray, *, epoch: int) -> list[Piece]:
        """The rows of draws from the position on, source by source, each in its own order. `epoch`: of the mix."""
        counts = np.bincount(order, minlength=len(position.drawn)).tolist()
        return [
            piece
            for source, (begin, count) in enumerate(zip(position.drawn, counts, strict=True))
            if count
            for piece in self._walk(source, begin, begin + count, epoch)
        ]

    def after(self, position: MixPosition, order: np.ndarray) -> MixPosition:
        """The position when all those draws are done."""
        counts = np.bincount(order, minlength=len(position.drawn)).tolist()
        return replace(
            position,
            drawn=_add(position.drawn, counts),
            stage_drawn=_add(position.stage_drawn, counts),
            size=0,
        )

    def last_pieces(self, pieces: Sequence[Piece]) -> Iterable[Piece]:
        """Of each source."""
        return {piece.group.source: piece for piece in pieces}.values()

    def _walk(self, source: int, begin: int, stop: int, epoch: int) -> list[Piece]:
        """The rows `begin` to `stop` of the endless walk through a source."""
        num_rows, pieces = int(self.source_rows[source + 1] - self.source_rows[source]), []
        for turn in range(begin // num_rows, -(-stop // num_rows)):
            order, ends = self._shuffle(source, epoch, turn)
            low, high = max(begin - turn * num_rows, 0), min(stop - turn * num_rows, num_rows)
            for place in range(np.searchsorted(ends, low, "right"), np.searchsorted(ends, high, "left") + 1):
                group = self._groups.group(int(order[place]))
                first = int(ends[place]) - group.num_rows
                pieces.append(Piece(group, max(low - first, 0), min(high - first, group.num_rows)))
        return pieces

    def _shuffle(self, source: int, epoch: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The row groups of an epoch of a source in their order, and the rows up to the end of each."""
        kept = self._walks.get(source)
        if kept is None or kept[0] != (epoch, turn):
            first, stop = self._groups.source_groups[source : source + 2].tolist()
            random = generator(self.seed, epoch, turn, Draw.GROUPS, source)
            order = first + permutation(stop - first, random)
            kept = self._walks[source] = ((epoch, turn), order, np.cumsum(self._groups.rows[order]))
        return kept[1], kept[2]


def _add(ours: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    return tuple(one + other for one, other in zip(ours, more, strict=True))
