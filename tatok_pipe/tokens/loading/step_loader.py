"""Training batches from a token dataset: packed, the same at any world size, resumable after any step.

Every rank reads and packs all windows and lays out its own rows, so that ranks agree without talking to each other,
and each knows the figures of the whole step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.records import PackedBatch
from tatok_pipe.seeds import MAX_SEED
from tatok_pipe.tokens.loading.batches import empty_rows, join
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.mix_planner import MixPlanner
from tatok_pipe.tokens.loading.mixing import Mixing
from tatok_pipe.tokens.loading.packing import rows_per_rank
from tatok_pipe.tokens.loading.sequences import SequenceReader
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.window_stream import LoaderConfig, Position, Window, WindowStream
from tatok_pipe.tokens.loading.windows import EpochPlanner, RowGroups, stream_digest
from tatok_pipe.tokens.row_condition import RowCondition, read_condition
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)

SPLITS = ("train", "held_out")
_MAX_WINDOW_ELEMENTS = 1 << 29
_STREAM_VERSION = 1  # to be raised where this program begins to make another order of sequences


@dataclass(frozen=True)
class StepBatch:
    """What a rank does in one step, and the figures of the step over all ranks.

    All micro-batches of all ranks and steps have the same number of rows; those that are missing are empty.
    """

    microbatches: tuple[PackedBatch, ...]  # of this rank
    epoch: int
    step_in_epoch: int  # counted from where the epoch, or this iteration in it, began
    is_epoch_end: bool
    num_sequences_of: tuple[int, ...]  # of each source; global, as are all below
    num_codes: int  # codes to be predicted: sum of K + M
    num_positions: int  # positions, or the end, to be predicted: sum of M + 1
    num_elements: int  # sum of 1 + K + M
    num_slots: int  # elements with padding and empty rows, of rows of `row_tokens`

    @property
    def num_sequences(self) -> int:
        return sum(self.num_sequences_of)

    @property
    def fill(self) -> float:
        """The share of the step's slots that holds elements."""
        return self.num_elements / self.num_slots


class StepLoader:
    """Steps of training on `sources`, endlessly; or one pass over what is held out.

    Their shards come from one `read_training_set` for all ranks. Several are mixed as `mixing` says, each in epochs of
    its own, and there are no epochs of the whole; a pass over what is held out has every image once. A step takes the
    next `rows_per_step` rows of the epoch, and the last one of an epoch what is left. All ranks share one stream of
    rows, as `rank_rows` says. With split "held_out" the order is always that of epoch 0, and no condition is hidden.
    Where a step `ends_with_longest`, the rows of a rank have no more elements than its fullest needs.
    `state_dict` after a step and `load_state_dict` before iterating go on exactly there, with any number of ranks and
    any `rows_per_step`.

    Raises UserError for settings that do not go with the data; so does iterating, where a shard cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: TokenSpec,
        config: LoaderConfig,
        *,
        condition: ConditionConfig,
        mixing: Mixing | None = None,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        split: str = "train",
        ends_with_longest: bool = False,
    ) -> None:
        if not 0 <= rank < num_ranks:
            raise ValueError(
                f"rank={rank}: expected 0 to num_ranks - 1 = {num_ranks - 1}; count ranks from 0"
            )
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed={seed}: expected 0 to {MAX_SEED}")
        _check_sizes(config, spec)
        for source in sources:
            if not any(shard.num_rows for shard in source.shards):
                raise UserError(
                    f"{storage.redact(source.url)}: {len(source.shards)} shards without rows, so nothing to train on"
                )
        self.sources = tuple(sources)
        self.config = config
        self.condition = condition
        self.num_ranks = num_ranks
        self._ends_with_longest = ends_with_longest
        self._num_globals = spec.num_globals
        self._is_held_out = split == "held_out"
        share = config.held_out_share if self._is_held_out else 1 - config.held_out_share
        if not share:
            raise UserError("split=held_out with held_out_share=0: nothing is held out; give more than 0")
        window_rows = max(1, round(config.window_sequences / share))
        row_groups = RowGroups([source.shards for source in sources])
        # (num_sources + 1,), cumulative: how `sequences` are numbered
        self.source_rows = row_groups.source_rows
        self._mixing = None if self._is_held_out else mixing
        chosen = [read_condition(source.url, spec, source.where) for source in sources]
        self._stream = WindowStream(
            EpochPlanner(row_groups, window_rows=window_rows, seed=seed)
            if self._mixing is None
            else MixPlanner(row_groups, self._mixing, window_rows=window_rows, seed=seed),
            [
                SequenceReader(
                    source,
                    spec,
                    condition,
                    held_out_share=config.held_out_share,
                    is_held_out=self._is_held_out,
                    chosen=rows,
                )
                for source, rows in zip(sources, chosen, strict=True)
            ],
            config,
            drop_condition=0.0 if self._is_held_out else condition.drop_condition,
            rank=rank,
            num_ranks=num_ranks,
        )
        self.digest = stream_digest(
            sources[0].shards,
            version=_STREAM_VERSION,
            spec=json.dumps(spec.to_json(), sort_keys=True),
            row_tokens=config.row_tokens,
            window_sequences=config.window_sequences,
            held_out_share=config.held_out_share,
            split=split,
            seed=seed,
            # Rows that are padded are sorted by their steps.
            **_describe_choice(chosen),
            **({} if config.layout == "packed" else {"padded": config.rows_per_step}),
            **({} if mixing is None else {"mix": _describe_mix(sources, mixing)}),
        )
        self._position = Position()
        self._step = 0  # which one is next, where weights go by it
        self._iteration = 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the step that was given out last, as JSON types; the same on every rank."""
        step = {} if self._mixing is None else {"step": self._step}
        return {**self._position.to_json(), "digest": self.digest, **step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position. Iterators that were begun before raise RuntimeError from now on.

        Where the stream is another one by now (shards, settings, mix), raises UserError, or begins the next epoch with
        `on_dataset_change="restart_epoch"`.
        """
        position = Position.from_json(state)
        if state["digest"] != self.digest:
            position = self._restart(position)
        self._position = position
        self._step = int(state.get("step", 0))
        self._iteration += 1

    def __iter__(self) -> Generator[StepBatch, None, None]:
        self._iteration += 1
        return self._steps(self._iteration)

    def _restart(self, position: Position) -> Position:
        shown = ", ".join(storage.redact(source.url) for source in self.sources)
        if self.config.on_dataset_change == "error":
            raise UserError(
                f"{shown}: the saved position (epoch {position.epoch}, window {position.window}, row {position.row}) "
                "is one in another stream: the datasets, their versions, shards, weights or tokenizer, row_tokens, "
                "window_sequences, held_out_share, where, split or seed were different; give those of the saved run, "
                "or set on_dataset_change=restart_epoch to begin its next epoch with what is there now"
            )
        if self._is_held_out:
            return Position()
        logger.warning(
            "%s: shards or settings have changed; epoch %d is left, and epoch %d begins with what is there now",
            shown,
            position.epoch,
            position.epoch + 1,
        )
        return Position(position.epoch + 1)

    def _steps(self, iteration: int) -> Generator[StepBatch, None, None]:
        stream = self._stream.windows(self._position, step=self._step, is_endless=not self._is_held_out)
        with closing(stream) as windows:
            window, row, step_in_epoch = next(windows, None), 0, 0
            while window is not None:
                epoch, wanted = window.epoch, self.config.rows_per_step
                pieces: list[_Piece] = []
                while window is not None and window.epoch == epoch and wanted:
                    stop = min(row + wanted, window.num_rows)
                    pieces.append(_Piece(window, row, stop))
                    wanted, row = wanted - (stop - row), stop
                    if row == window.num_rows:
                        # Also where no more rows are wanted, to know whether the epoch ends here.
                        window, row = next(windows, None), 0
                is_epoch_end = window is None or window.epoch > epoch
                if is_epoch_end:
                    self._position = Position() if self._is_held_out else Position(epoch + 1)
                else:
                    self._position = pieces[-1].window.after(pieces[-1].stop)
                self._step += 1
                yield self._to_step(pieces, step_in_epoch, is_epoch_end)
                if iteration != self._iteration:
                    raise RuntimeError(
                        "this loader was given another position or iterated anew; go on with that"
                    )
                step_in_epoch = 0 if is_epoch_end else step_in_epoch + 1

    def _to_step(self, pieces: Sequence[_Piece], step_in_epoch: int, is_epoch_end: bool) -> StepBatch:
        config = self.config
        num_microbatches = -(
            -rows_per_rank(config.rows_per_step, self.num_ranks) // config.rows_per_microbatch
        )
        num_rows = num_microbatches * config.rows_per_microbatch  # of each rank
        counts = sum(piece.count(piece.window.num_sequences) for piece in pieces)
        num_sequences = int(np.sum(counts))
        num_elements = int(sum(piece.count(piece.window.num_elements) for piece in pieces))
        return StepBatch(
            microbatches=tuple(self._microbatches(pieces, num_microbatches)),
            epoch=pieces[0].window.epoch,
            step_in_epoch=step_in_epoch,
            is_epoch_end=is_epoch_end,
            num_sequences_of=tuple(np.asarray(counts).tolist()),
            num_codes=num_elements - num_sequences,
            num_positions=num_elements - num_sequences * self._num_globals,
            num_elements=num_elements,
            num_slots=self.num_ranks * num_rows * config.row_tokens,
        )

    def _microbatches(self, pieces: Sequence[_Piece], num_microbatches: int) -> Iterator[PackedBatch]:
        """This rank's rows of the pieces, a few at a time, and empty ones after them."""
        size, row_tokens = self.config.rows_per_microbatch, self.config.row_tokens
        ranges = [piece.own_range() for piece in pieces]
        if self._ends_with_longest:
            row_tokens = max(
                1, *(piece.window.own.fullest(*own) for piece, own in zip(pieces, ranges, strict=True))
            )
        begins = np.cumsum(
            [0] + [stop - start for start, stop in ranges]
        )  # of the pieces in this rank's rows
        embedding_size = self.condition.embedding_size if self.condition.kind == "embedding" else None
        for first in range(0, num_microbatches * size, size):
            parts = []
            for piece, (start, stop), begin in zip(pieces, ranges, begins[:-1].tolist(), strict=True):
                low, high = max(start, start + first - begin), min(stop, start + first + size - begin)
                if low < high:
                    parts.append(piece.window.own.cut(low, high, row_tokens=row_tokens))
            num_missing = size - sum(part.num_rows for part in parts)
            if num_missing:
                parts.append(empty_rows(num_missing, row_tokens=row_tokens, embedding_size=embedding_size))
            yield join(parts)


@dataclass(frozen=True)
class _Piece:
    """Rows of a window that a step takes."""

    window: Window
    start: int
    stop: int

    def count(self, cumulative: np.ndarray) -> np.ndarray:
        """Of (…, num_rows + 1) what the piece has, (…)."""
        return cumulative[..., self.stop] - cumulative[..., self.start]

    def own_range(self) -> tuple[int, int]:
        """Which of the rank's rows of the window they are, from and to."""
        start, stop = np.searchsorted(self.window.own_rows, (self.start, self.stop)).tolist()
        return start, stop


def _describe_choice(chosen: Sequence[RowCondition | None]) -> dict[str, str]:
    """The same of what rows are left out."""
    given = [each for each in chosen if each is not None]
    if not given:
        return {}
    return {"where": given[0].text, "columns": " ".join(each.joined_digest for each in given)}


def _describe_mix(sources: Sequence[Source], mixing: Mixing) -> str:
    """What makes the order and the labels of a mix, beside the settings that all loaders have."""
    digests = [stream_digest(source.shards, labels=json.dumps(source.labels)) for source in sources]
    return json.dumps([digests, mixing.weights, mixing.changes])


def _check_sizes(config: LoaderConfig, spec: TokenSpec) -> None:
    longest = 1 + spec.num_globals + spec.num_patches
    if config.row_tokens < longest:
        raise UserError(
            f"row_tokens={config.row_tokens}: expected at least {longest}, the longest sequence that this tokenizer "
            f"makes (condition, {spec.num_globals} globals, {spec.num_patches} patches)"
        )
    # A window's elements are counted in int32; best-fit decreasing leaves less than half of its rows empty.
    if config.window_sequences * longest > _MAX_WINDOW_ELEMENTS:
        raise UserError(
            f"window_sequences={config.window_sequences}: expected at most {_MAX_WINDOW_ELEMENTS // longest} with up "
            f"to {longest} elements a sequence"
        )
