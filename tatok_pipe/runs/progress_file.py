"""Where a run is now, for those who do not see its log: `_progress.json` beside its output.

It is rewritten every few seconds while the run lives and says at last how the run ended, so that a reader knows a run
that goes on, one that came to its end, and one that died. It holds times, and nothing depends on it: it is written by a
thread of its own, and a store that does not take it costs a warning. Of two runs on one output it is the last writer's.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.runs.progress import RunState, format_duration
from tatok_pipe.runs.this_process import machine_id, process_start
from tatok_pipe.storage.json_types import to_json_types

logger = logging.getLogger(__name__)

PROGRESS_FILE = "_progress.json"
RUNNING, DONE = "running", "done"
_FORMAT = 1
_LEAST_EVERY_S = 1.0  # between two requests to a store
_END_S = 10.0  # that a run waits at its end for a store that does not answer
_MISSED = 6  # times that it was not rewritten, after which a run of another machine is given up
_LEAST_SILENCE_S = 60.0


@dataclass(frozen=True)
class Progress:
    """What the file says. Counts of shards are those of the output, images those of this run."""

    entry: str
    status: str  # "running", "done", or how else it ended
    exit_code: int | None  # None while it runs
    shards_planned: int
    shards_done: int
    shards_failed: int
    images: int
    images_per_s: float
    tokens: int
    tokens_per_image: float
    quarantined: int
    actors: int
    actors_wanted: int
    seconds: float  # since the first shard of this run was begun
    left_s: float | None  # None where nothing says so yet
    row_name: str  # what a row is made of: "image" or "crop"
    host: str
    process: int
    machine: str  # where the number of the process means this one; empty where that is not known
    process_start: str
    begun: str  # ISO 8601, UTC, by the clock of `host`
    written: str
    every_s: float  # how often it is rewritten

    def written_s(self) -> float:
        """Seconds since 1970 by the clock of its host. Raises ValueError where it says no time."""
        return datetime.fromisoformat(self.written).timestamp()


class ProgressFile:
    """Keeps the file of the output `url` from now until `close`.

    This run is to do `num_todo` shards, `num_done_before` more were done by earlier ones. On a store where each write
    is a commit that stays, a repository of the Hugging Face hub, nothing is written.
    """

    def __init__(
        self,
        url: str,
        *,
        entry: str,
        every_s: float,
        num_todo: int,
        num_done_before: int = 0,
        row_name: str = "image",
    ) -> None:
        self._url = storage.join(url, PROGRESS_FILE)
        self._entry, self._row_name = entry, row_name
        self._every_s = max(every_s, _LEAST_EVERY_S)
        self._num_done_before = num_done_before
        self._state = RunState(num_shards=num_todo)
        self._begun = _now()
        self._end: tuple[str, int] | None = None
        self._has_warned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="progress-file", daemon=True)
        if not storage.commits_each_write(url):
            self._thread.start()

    def show(self, state: RunState) -> None:
        """What the file says from the next time on that it is written."""
        self._state = state

    def close(self, status: str, exit_code: int) -> None:
        """Say how the run ended, once; gives up after ten seconds."""
        if self._end is not None:
            return
        self._end = (status, exit_code)
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _keep(self) -> None:
        self._write()
        while not self._over.wait(self._every_s):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            text = json.dumps({"format": _FORMAT, **to_json_types(asdict(self._progress()))}, indent=1) + "\n"
            storage.publish_bytes(text.encode(), self._url, exclusive=False)
        except Exception as error:  # whatever a store says, the run does not depend on it
            if not self._has_warned:
                told = " ".join(storage.redact(str(error)).split()) or type(error).__name__
                logger.warning("%s: not written, the run goes on: %s", storage.redact(self._url), told)
            self._has_warned = True

    def _progress(self) -> Progress:
        state = self._state
        status, exit_code = self._end or (RUNNING, None)
        return Progress(
            entry=self._entry,
            status=status,
            exit_code=exit_code,
            shards_planned=self._num_done_before + state.num_shards,
            shards_done=self._num_done_before + state.num_done - state.num_failed,
            shards_failed=state.num_failed,
            images=state.num_images,
            images_per_s=round(state.images_per_s, 2),
            tokens=state.num_tokens,
            tokens_per_image=round(state.tokens_per_image, 2),
            quarantined=state.num_quarantined,
            actors=state.num_actors,
            actors_wanted=state.num_actors_wanted,
            seconds=round(state.seconds, 1),
            left_s=None if state.left_s == float("inf") else round(state.left_s, 1),
            row_name=self._row_name,
            host=socket.gethostname(),
            process=os.getpid(),
            machine=machine_id(),
            process_start=process_start(os.getpid()),
            begun=self._begun,
            written=_now(),
            every_s=self._every_s,
        )


def read_progress(url: str) -> Progress | None:
    """What a run tells of itself beside the output `url`; None where none does. Raises UserError where the file says
    nothing that is understood."""
    place = storage.join(url, PROGRESS_FILE)
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(place))
        if content.pop("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}")
        progress = Progress(**content)
        progress.written_s()
        return progress
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"{storage.redact(place)}: is broken ({told}); it may be removed, the next run writes it anew"
        ) from error


def was_cut_short(url: str) -> bool:
    """Whether the file says of the last run that it did not come to its end. False where nobody knows."""
    try:
        progress = read_progress(url)
    except (UserError, OSError):
        return False
    return progress is not None and progress.status != DONE


def tell_death(progress: Progress, *, may_be_silent: bool = False) -> str:
    """Why a run that says that it goes on seems to have died, for people; empty where it lives, or has said its end.

    A process of this machine is looked for. Of another one's it is believed that it rewrites the file, by the clocks of
    both machines, unless it `may_be_silent`.
    """
    if progress.status != RUNNING:
        return ""
    if progress.machine and progress.machine == machine_id():
        is_there = process_start(progress.process) == progress.process_start
        return "" if is_there else f"process {progress.process} of this machine, which made it, is gone"
    silence_s = time.time() - progress.written_s()
    if may_be_silent or silence_s <= max(_MISSED * progress.every_s, _LEAST_SILENCE_S):
        return ""
    return (
        f"process {progress.process} on {progress.host} has not told anything for {format_duration(silence_s)}, and "
        f"should every {progress.every_s:g} s"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
