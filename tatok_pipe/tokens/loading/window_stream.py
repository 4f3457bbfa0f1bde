"""The windows of a token dataset, one after the other: read, shuffled, packed, and a rank's rows of them laid out."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.loading.batches import PackedRows, Sequences
from tatok_pipe.tokens.loading.mix_planner import MixPlanner, MixPosition
from tatok_pipe.tokens.loading.packing import Packing, count_rows, one_a_row, pack, rank_rows
from tatok_pipe.tokens.loading.sequences import SequenceReader, concatenate
from tatok_pipe.tokens.loading.windows import Draw, EpochPlanner, RowGroup, generator, random_shares

# Row groups that are read at a time: a store is waited for. Those of a disk are there at once, and more than one thread
# would only take turns at the interpreter, and memory.
_NUM_READERS, _NUM_DISK_READERS = 4, 1
_ON_DATASET_CHANGE = ("error", "restart_epoch")
LAYOUTS = ("packed", "padded")
_ReadAll = Callable[[Sequence[RowGroup]], list[Sequences]]


@dataclass(frozen=True)
class LoaderConfig:
    """How sequences become the rows of steps."""

    row_tokens: int = 4096  # elements of a packed row; at least 1 + globals + patches
    rows_per_step: int = 64  # packed rows of an optimizer step, at any number of ranks
    rows_per_microbatch: int = 8  # packed rows that go through the model at once, per rank
    # Sequences that are read, shuffled and packed together, per rank; up to three times as many are in memory.
    window_sequences: int = 32_768
    held_out_share: float = 0.0  # of the samples, by a hash of the key: kept from training
    # packed: as few rows as the sequences need; padded: one sequence a row, those of a step alike in length.
    layout: str = "packed"
    # Where shards or settings are not those of the saved position: stop, or begin the next epoch with them.
    on_dataset_change: str = "error"

    def __post_init__(self) -> None:
        for name in ("row_tokens", "rows_per_step", "rows_per_microbatch", "window_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share={self.held_out_share}: expected 0 or more, and less than 1")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        if self.on_dataset_change not in _ON_DATASET_CHANGE:
            raise ValueError(
                f"on_dataset_change={self.on_dataset_change!r}: expected one of {', '.join(_ON_DATASET_CHANGE)}"
            )


@dataclass(frozen=True)
class Position:
    """The next row that is to be consumed."""

    epoch: int = 0
    window: int = 0
    row: int = 0
    mix: MixPosition | None = None  # of the window; None where there is one dataset

    def to_json(self) -> dict[str, Any]:
        """JSON types; `from_json` is the inverse."""
        mix = {} if self.mix is None else {"mix": self.mix.to_json()}
        return {"epoch": self.epoch, "window": self.window, "row": self.row, **mix}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Position:
        mix = state.get("mix")
        return cls(
            int(state["epoch"]), int(state["window"]), int(state["row"]), mix and MixPosition.from_json(mix)
        )


@dataclass(frozen=True)
class Window:
    """The rows of a window from a position on: those of a rank at hand, all of them counted."""

    begin: Position
    end: Position
    num_rows: int
    own: PackedRows
    own_rows: np.ndarray  # (own.num_rows,) int64, ascending: which of the num_rows they are
    num_sequences: np.ndarray  # (num_sources, num_rows + 1) int64, cumulative
    num_elements: np.ndarray  # (num_rows + 1,) int64, cumulative

    @property
    def epoch(self) -> int:
        return self.begin.epoch

    def after(self, row: int) -> Position:
        """The position after the first `row` of the rows."""
        if row < self.num_rows:
            return dataclasses.replace(self.begin, row=self.begin.row + row)
        return self.end


class WindowStream:
    """Makes the windows of one rank. `drop_condition` is the share of sequences whose condition is hidden, and,
    drawn apart, of those whose number of patches is."""

    def __init__(
        self,
        planner: EpochPlanner | MixPlanner,
        readers: Sequence[SequenceReader],
        config: LoaderConfig,
        *,
        drop_condition: float,
        rank: int,
        num_ranks: int,
    ) -> None:
        self._planner = planner
        self._readers = readers  # of the sources
        self._source_rows = planner.source_rows
        self._config = config
        self._drop_condition = drop_condition
        self._rank, self._num_ranks = rank, num_ranks

    def windows(self, begin: Position, *, step: int, is_endless: bool) -> Generator[Window, None, None]:
        """The windows from `begin` on, which is where the `step`th step begins, to the end of the epoch or endlessly;
        those without rows are left out. A mix has no end.

        Another thread makes one window ahead. Closing the iterator, or letting go of it, ends that thread as soon as
        the row groups in work are read. Raises UserError where an epoch has no rows, and as `SequenceReader.read`.
        """
        stopped = threading.Event()
        windows = self._make_windows(begin, step, is_endless, stopped)
        pool = ThreadPoolExecutor(1, "token-windows")
        ahead = pool.submit(next, windows, None)
        try:
            while (window := ahead.result()) is not None:
                ahead = pool.submit(next, windows, None)
                yield window
                del window  # not kept while the next one is waited for
        finally:
            stopped.set()
            ahead.add_done_callback(lambda _: windows.close())  # not before, while the thread runs it
            pool.shutdown(wait=False)

    def _make_windows(
        self, begin: Position, step: int, is_endless: bool, stopped: threading.Event
    ) -> Generator[Window, None, None]:
        def read(group: RowGroup) -> Sequences:
            if stopped.is_set():
                raise CancelledError
            return self._readers[group.source].read(group)

        num_readers = _NUM_DISK_READERS if all(each.is_local for each in self._readers) else _NUM_READERS
        with ThreadPoolExecutor(num_readers, "token-rows") as pool:

            def read_all(groups: Sequence[RowGroup]) -> list[Sequences]:
                return list(map_ahead(pool, read, groups, max_items=num_readers))

            if isinstance(self._planner, MixPlanner):
                yield from self._mix_windows(self._planner, begin, step, read_all)
            else:
                yield from self._epoch_windows(self._planner, begin, is_endless, read_all)

    def _epoch_windows(
        self, planner: EpochPlanner, begin: Position, is_endless: bool, read_all: _ReadAll
    ) -> Generator[Window, None, None]:
        while True:
            epoch = begin.epoch
            plan = planner.windows(epoch)
            place = num_rows = 0  # of the next row in its step; of the epoch so far
            for number in range(begin.window, len(plan)):
                sequences = concatenate(read_all(planner.groups(plan[number])))
                first_row = begin.row if number == begin.window else 0
                place_of_window, after = Position(epoch, number, first_row), Position(epoch, number + 1)
                window = self._pack(sequences, place_of_window, place, end=after)
                place = (place + window.num_rows) % self._config.rows_per_step
                num_rows += window.num_rows
                if window.num_rows:
                    yield window
            if not num_rows and begin == Position(epoch):
                raise self._nothing(planner.num_rows)
            if not is_endless:
                return
            begin = Position(epoch + 1)

    def _mix_windows(
        self, planner: MixPlanner, begin: Position, step: int, read_all: _ReadAll
    ) -> Generator[Window, None, None]:
        rows_per_step = self._config.rows_per_step
        row, num_idle = step * rows_per_step, 0  # of the training; draws since a window had rows
        kept: dict[RowGroup, Sequences] = {}
        while True:
            mix = begin.mix or planner.start()
            if not begin.row:
                mix = planner.enter(mix, row // rows_per_step)
            order = planner.order(mix)
            pieces = planner.pieces(mix, order, epoch=begin.epoch)
            missing = [group for group in dict.fromkeys(piece.group for piece in pieces) if group not in kept]
            kept |= dict(zip(missing, read_all(missing), strict=True))
            draws = _Draws(planner, mix, order, begin.epoch, kept)
            end = planner.mixing.end_of(mix.stage)
            if not begin.row and end is not None:
                size = self._fit(draws, max_rows=end * rows_per_step - row)
                mix, order = dataclasses.replace(mix, size=size), order[:size]
            begin = dataclasses.replace(begin, mix=mix)
            after = Position(begin.epoch, begin.window + 1, mix=planner.after(mix, order))
            window = self._pack(draws.first(len(order)), begin, row % rows_per_step, end=after)
            # The next window has the rest of the row groups that were cut.
            kept = {piece.group: kept[piece.group] for piece in planner.last_pieces(pieces)}
            row, num_idle = row + window.num_rows, 0 if window.num_rows else num_idle + len(order)
            if window.num_rows:
                yield window
            elif num_idle > 2 * planner.num_rows:
                raise self._nothing(planner.num_rows)
            begin = after

    def _fit(self, draws: _Draws, *, max_rows: int) -> int:
        """How many of the draws, from the first on, make no more than `max_rows` rows: as many as there can be."""

        def fits(count: int) -> bool:
            lengths = draws.first(count).lengths
            if self._config.layout == "padded":
                return len(lengths) <= max_rows
            return count_rows(lengths, row_tokens=self._config.row_tokens) <= max_rows

        count = len(draws.order)
        low, high = 0, count + 1  # so many fit; so many, or fewer, do not
        while high - low > 1:
            low, high = (count, high) if fits(count) else (low, count)
            count = (low + high) // 2
        return low

    def _nothing(self, num_rows: int) -> UserError:
        where = next((reader.where for reader in self._readers if reader.where), "")
        told, advice = (f" and has {where}", "where, or ") if where else ("", "")
        return UserError(
            f"none of the {num_rows} sequences is in this split{told}; change {advice}held_out_share="
            f"{self._config.held_out_share}, or give a dataset with more images"
        )

    def _pack(self, sequences: Sequences, begin: Position, place: int, *, end: Position) -> Window:
        """A window whose first row has the given place in its step."""
        config = self._config
        sequences = self._hide_conditions(sequences, begin)
        lengths = sequences.lengths
        random = generator(self._planner.seed, begin.epoch, begin.window, Draw.PACKING)
        if config.layout == "packed":
            packing = pack(lengths, row_tokens=config.row_tokens, random=random)
        else:
            packing = one_a_row(
                lengths,
                row_tokens=config.row_tokens,
                rows_per_step=config.rows_per_step,
                first_place=(place - begin.row) % config.rows_per_step,
                random=random,
            )
        num_rows = max(0, packing.num_rows - begin.row)
        own_rows = rank_rows(
            num_rows,
            first_place=place,
            rows_per_step=config.rows_per_step,
            rank=self._rank,
            num_ranks=self._num_ranks,
        )
        starts = packing.starts[packing.num_rows - num_rows :]
        elements = np.concatenate([[0], np.cumsum(lengths[packing.sequences])])[starts]
        return Window(
            begin=begin,
            end=end,
            num_rows=num_rows,
            own=PackedRows(sequences, packing, begin.row + own_rows),
            own_rows=own_rows,
            num_sequences=self._count_sequences(sequences, packing, starts),
            num_elements=elements - elements[0],
        )

    def _count_sequences(self, sequences: Sequences, packing: Packing, starts: np.ndarray) -> np.ndarray:
        """Of each source up to each of the rows that begin at `starts`, (num_sources, len(starts)) int64."""
        if len(self._readers) == 1:
            return starts[None] - starts[0]
        source = np.searchsorted(self._source_rows, sequences.numbers[packing.sequences], "right") - 1
        is_of = source == np.arange(len(self._readers))[:, None]
        counts = np.concatenate([np.zeros((len(is_of), 1), np.int64), np.cumsum(is_of, axis=1)], axis=1)[
            :, starts
        ]
        return counts - counts[:, :1]

    def _hide_conditions(self, sequences: Sequences, begin: Position) -> Sequences:
        """Drawn for each sequence before it is packed, so that it does not depend on ranks or steps."""
        if not self._drop_condition:
            return sequences

        def is_kept(purpose: Draw) -> np.ndarray:
            random = generator(self._planner.seed, begin.epoch, begin.window, purpose)
            return random_shares(len(sequences), random) >= self._drop_condition

        return dataclasses.replace(
            sequences,
            is_conditional=sequences.is_conditional & is_kept(Draw.CONDITIONS),
            has_budget=sequences.has_budget & is_kept(Draw.BUDGETS),
        )


@dataclass(frozen=True)
class _Draws:
    """Those of a window of a mix, and what was read for them."""

    planner: MixPlanner
    mix: MixPosition
    order: np.ndarray  # (n,) int64, which source each is of
    epoch: int
    read: Mapping[RowGroup, Sequences]

    def first(self, count: int) -> Sequences:
        """The sequences of the first draws, those that are in the split."""
        parts = []
        for piece in self.planner.pieces(self.mix, self.order[:count], epoch=self.epoch):
            sequences = self.read[piece.group]
            start, stop = np.searchsorted(sequences.numbers, piece.numbers).tolist()
            parts.append(sequences.cut(start, stop))
        return concatenate(parts)
