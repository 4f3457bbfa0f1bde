"""The token shards of an edit, some at a time, and how far it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tatok_pipe.parallel import map_ahead
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import Every, RunState, progress_line
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokens.checking.check import CorruptShard

logger = logging.getLogger("tatok_pipe.edit_tokens")

_NUM_WRITERS = 4


class Counted(Protocol):
    """What became of a token shard: the rows that were written, and their tokens."""

    @property
    def num_images(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


ResultT = TypeVar("ResultT", bound=Counted)


@dataclass(frozen=True)
class Written:
    """A file with so many rows."""

    num_images: int
    num_tokens: int


@dataclass
class Outcome(Generic[ResultT]):
    """What became of the token shards; fewer than all where the edit was stopped."""

    done: list[ResultT] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # those that are not whole, and why
    num_images: int = 0
    num_tokens: int = 0

    def add(self, result: ResultT) -> None:
        self.done.append(result)
        self.num_images += result.num_images
        self.num_tokens += result.num_tokens

    @property
    def num_over(self) -> int:
        return len(self.done) + len(self.failed)


def edit_shards(
    names: Sequence[str],
    edit: Callable[[str], ResultT],
    *,
    stop: StopSignal,
    summary: JobSummary,
    every_s: float,
    row_name: str,
) -> Outcome[ResultT]:
    """Call `edit` with each of the `names`, four at a time, until `stop` is requested. CorruptShard that it raises is a
    result, everything else ends the edit. A line tells how far it is every `every_s` seconds."""
    outcome: Outcome[ResultT] = Outcome()
    due, began_s = Every(every_s), time.monotonic()

    def attempt(name: str) -> ResultT | CorruptShard | None:
        if stop.is_requested:
            return None
        try:
            return edit(name)
        except CorruptShard as error:
            return error

    with stop, ThreadPoolExecutor(_NUM_WRITERS, "edit") as pool:
        for name, result in zip(names, map_ahead(pool, attempt, names, max_items=_NUM_WRITERS), strict=True):
            if isinstance(result, CorruptShard):
                outcome.failed[name] = str(result)
            elif result is not None:
                outcome.add(result)
            state = _state(outcome, num_shards=len(names), seconds=time.monotonic() - began_s)
            summary.show(state)
            if due():
                logger.info("%s", progress_line(state, has_quarantine=False, row_name=row_name))
    return outcome


def _state(outcome: Outcome[ResultT], *, num_shards: int, seconds: float) -> RunState:
    return RunState(
        num_shards=num_shards,
        num_done=outcome.num_over,
        num_failed=len(outcome.failed),
        num_images=outcome.num_images,
        num_tokens=outcome.num_tokens,
        seconds=seconds,
    )
