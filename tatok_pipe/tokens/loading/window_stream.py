"""The windows of a token dataset, one after the other: read, shuffled, packed, and a rank's rows of them laid out."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.loading.batches import PackedRows, Sequences, lay_out
from tatok_pipe.tokens.loading.packing import one_a_row, pack, rank_rows
from tatok_pipe.tokens.loading.sequences import SequenceReader, concatenate
from tatok_pipe.tokens.loading.windows import Draw, EpochPlanner, RowGroup, generator, random_shares

_READ_THREADS = 4  # row groups that are read at a time
_ON_DATASET_CHANGE = ("error", "restart_epoch")
LAYOUTS = ("packed", "padded")


@dataclass(frozen=True)
class LoaderConfig:
    """How sequences become the rows of steps."""

    row_tokens: int = 4096  # elements of a packed row; at least 1 + globals + patches
    rows_per_step: int = 64  # packed rows of an optimizer step, at any number of ranks
    rows_per_microbatch: int = 8  # packed rows that go through the model at once, per rank
    # Sequences that are read, shuffled and packed together, per rank; up to three times as many are in memory.
    window_sequences: int = 32_768
    held_out_share: float = 0.0  # of the samples, by a hash of the key: kept from training
    where: str = (
        ""  # a condition on rows, as `RowCondition` reads it: those that it is not true of are left out
    )
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


@dataclass(frozen=True)
class Window:
    """The rows of a window from a position on: those of a rank laid out, all of them counted."""

    begin: Position
    num_rows: int
    own: PackedRows
    own_rows: np.ndarray  # (own.num_rows,) int64, ascending: which of the num_rows they are
    num_sequences: np.ndarray  # (num_rows + 1,) int64, cumulative
    num_elements: np.ndarray  # (num_rows + 1,) int64, cumulative

    @property
    def epoch(self) -> int:
        return self.begin.epoch

    def after(self, row: int) -> Position:
        """The position after the first `row` of the rows."""
        if row < self.num_rows:
            return dataclasses.replace(self.begin, row=self.begin.row + row)
        return Position(self.begin.epoch, self.begin.window + 1)


class WindowStream:
    """Makes the windows of one rank. `drop_condition` is the share of sequences whose condition is hidden, and,
    drawn apart, of those whose number of patches is."""

    def __init__(
        self,
        planner: EpochPlanner,
        reader: SequenceReader,
        config: LoaderConfig,
        *,
        drop_condition: float,
        rank: int,
        num_ranks: int,
    ) -> None:
        self._planner = planner
        self._reader = reader
        self._config = config
        self._drop_condition = drop_condition
        self._rank, self._num_ranks = rank, num_ranks

    def windows(self, begin: Position, *, is_endless: bool) -> Generator[Window, None, None]:
        """The windows from `begin` on, to the end of the epoch or endlessly; those without rows are left out.

        Another thread makes one window ahead. Closing the iterator, or letting go of it, ends that thread as soon as
        the row groups in work are read. Raises UserError where an epoch has no rows, and as `SequenceReader.read`.
        """
        stopped = threading.Event()
        windows = self._make_windows(begin, is_endless, stopped)
        pool = ThreadPoolExecutor(1, "token-windows")
        ahead = pool.submit(next, windows, None)
        try:
            while (window := ahead.result()) is not None:
                ahead = pool.submit(next, windows, None)
                yield window
        finally:
            stopped.set()
            ahead.add_done_callback(lambda _: windows.close())  # not before, while the thread runs it
            pool.shutdown(wait=False)

    def _make_windows(
        self, begin: Position, is_endless: bool, stopped: threading.Event
    ) -> Generator[Window, None, None]:
        def read(group: RowGroup) -> Sequences:
            if stopped.is_set():
                raise CancelledError
            return self._reader.read(group)

        with ThreadPoolExecutor(_READ_THREADS, "token-rows") as pool:
            while True:
                epoch = begin.epoch
                plan = self._planner.windows(epoch)
                place = num_rows = 0  # of the next row in its step; of the epoch so far
                for number in range(begin.window, len(plan)):
                    groups = self._planner.groups(plan[number])
                    sequences = concatenate(list(map_ahead(pool, read, groups, max_items=_READ_THREADS)))
                    first_row = begin.row if number == begin.window else 0
                    window = self._pack(sequences, Position(epoch, number, first_row), place)
                    place = (place + window.num_rows) % self._config.rows_per_step
                    num_rows += window.num_rows
                    if window.num_rows:
                        yield window
                if not num_rows and begin == Position(epoch):
                    raise UserError(
                        f"none of the {self._planner.num_rows} sequences is in this split; change held_out_share="
                        f"{self._config.held_out_share}, or give a dataset with more images"
                    )
                if not is_endless:
                    return
                begin = Position(epoch + 1)

    def _pack(self, sequences: Sequences, begin: Position, place: int) -> Window:
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
            num_rows=num_rows,
            own=lay_out(sequences, packing, begin.row + own_rows),
            own_rows=own_rows,
            num_sequences=starts - starts[0],
            num_elements=elements - elements[0],
        )

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
