"""How an entry starts and ends: logging, what a user is told of an error, the exit code, and a last line for machines.

summary {"entry": "tokenize_corpus", "exit_code": 0, "images": 544, "output": "s3://bucket/tokens", …}
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import select
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from tatok_pipe.errors import (
    EXIT_DONE,
    EXIT_FAILED_SHARDS,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    UserError,
    has_outside_cause,
)
from tatok_pipe.runs.log_format import configure_logging
from tatok_pipe.runs.progress import RunState
from tatok_pipe.runs.progress_file import ProgressFile
from tatok_pipe.runs.stop_signal import INTERRUPTED, StopSignal, ignore_signals, raise_on_signals, received
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.storage.proxies import spare_loopback
from tatok_pipe.version import __version__

logger = logging.getLogger(__name__)

SUMMARY = "summary "  # what the line begins with, after the time and the name of the logger
_LEAVE_S = 10.0  # for what a process still does once its exit code is known: Ray is shut down, threads end
# What the machine refuses, wherever it is met: no room, no permission, a disk that fails, too many files.
_OUTSIDE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENFILE,
}  # fmt: skip
_EXIT_PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE stopped
_STATUSES = {
    EXIT_DONE: "done",
    EXIT_FAILED_SHARDS: "failed",
    EXIT_USAGE: "usage",
    EXIT_REFUSED: "refused",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_INTERNAL: "bug",
}


def run_entry(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line and leave the process with its exit code (None: 0).

    A UserError ends as one line on stderr and its own exit code, an error of storage or of the machine as one line and
    EXIT_USAGE, Ctrl-C, SIGTERM and SIGHUP as one line and EXIT_INTERRUPTED. A
    reader of our output that went away (`| head`) ends the program in silence. Any other exception is a bug:
    it keeps its traceback and leaves with EXIT_INTERNAL.
    """
    if _is_process_of_a_command():
        atexit.register(_skip_teardown)  # first, so that it is called last
    configure_logging(sys.stderr)
    raise_on_signals()
    spare_loopback()
    _process.is_ours = True
    try:
        code = main(sys.argv[1:]) or EXIT_DONE
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        ignore_signals()
        if isinstance(error, BrokenPipeError) and _silence_closed_stdout():
            code = _EXIT_PIPE_CLOSED
        else:
            code, told = _tell(error)
            if told:
                print(told, file=sys.stderr)
            else:
                traceback.print_exc()
            if isinstance(error, OSError):
                _silence_full_stdout()
    finally:
        ignore_signals()
    _leave_soon(code)
    _process.exit_code = code
    raise SystemExit(code)


class _Process:
    """What other threads than the main one ask of the job in this process."""

    is_ours = False  # it was started for the job and may be ended with it; a notebook's may not
    summaries: list[JobSummary] = []  # of the jobs that run
    exit_code: int | None = None  # once it is known


_process = _Process()


def is_running() -> bool:
    """Whether a job runs in this process, and has not begun to tell how it ended."""
    return bool(_process.summaries)


def was_interrupted() -> bool:
    """Whether a signal asked the job to stop."""
    return received.is_set()


def end_now(error: Exception) -> None:
    """The last resort of a thread that sees why the main one hangs: the summary and the line that the job would have
    ended with, and the end of the process. Nothing where the process is not the job's own."""
    if not _process.is_ours or not is_running():
        return
    cause = KeyboardInterrupt() if was_interrupted() else error
    code, told = _tell(cause)
    for summary in _process.summaries:
        summary.exit_code = code
        summary.log(told.removeprefix("error: "))
    print(told, file=sys.stderr, flush=True)
    os._exit(code)


class JobSummary:
    """What a job's last line says, besides how it ended."""

    def __init__(self, entry: str) -> None:
        self.exit_code = EXIT_DONE
        self._entry = entry
        self._figures: dict[str, Any] = {}
        self._start_s = time.monotonic()
        self._progress: ProgressFile | None = None

    @property
    def has_begun(self) -> bool:
        return bool(self._figures)

    def add(self, figures: dict[str, Any]) -> None:
        """Figures under names with units, JSON types. What is not finite becomes null."""
        self._figures |= figures

    def keep_progress(self, progress: ProgressFile) -> None:
        """Have `progress` tell what `show` is told, and at last how the job ended."""
        self._progress = progress

    def show(self, state: RunState) -> None:
        """How far the job is; nobody is told where there is no progress to be kept."""
        if self._progress is not None:
            self._progress.show(state)

    def close_progress(self) -> None:
        """Say beside the output how the job ended, by its exit code."""
        if self._progress is not None:
            self._progress.close(_STATUSES.get(self.exit_code, "bug"), self.exit_code)

    def log(self, error: str = "") -> None:
        self.close_progress()
        line = {
            "entry": self._entry,
            "status": _STATUSES.get(self.exit_code, "bug"),
            "exit_code": self.exit_code,
            "wall_s": round(time.monotonic() - self._start_s, 1),
            "version": __version__,
            **({"submission_id": submission} if (submission := _submission_id()) else {}),
            **self._figures,
            **({"error": error} if error else {}),
        }
        logger.info("%s%s", SUMMARY, json.dumps(to_json_types(line), ensure_ascii=False, allow_nan=False))


@contextmanager
def job_summary(entry: str) -> Iterator[JobSummary]:
    """Log the summary at the end of the block, however it ends; its exit code is the one of the exception that leaves
    the block, or what was set. A command that was refused (EXIT_USAGE, EXIT_REFUSED) before it added a figure has none:
    nothing was begun, and its one line says why. Neither have `--help` and the like."""
    summary = JobSummary(entry)
    received.clear()
    _process.summaries.append(summary)
    try:
        yield summary
    except BrokenPipeError:  # the reader of our output has enough
        _process.summaries.remove(summary)
        summary.exit_code = EXIT_INTERRUPTED
        summary.close_progress()
        raise
    except (Exception, KeyboardInterrupt) as error:
        _process.summaries.remove(summary)
        with StopSignal():  # the line is whole, and says how the process ends
            summary.exit_code, told = _tell(error)
            is_refusal = isinstance(error, UserError) and error.exit_code in (EXIT_USAGE, EXIT_REFUSED)
            if summary.has_begun or not is_refusal:
                summary.log(told.removeprefix("error: ") or f"{type(error).__name__}: {error}")
            summary.close_progress()
        raise
    except BaseException:  # help was asked for
        _process.summaries.remove(summary)
        raise
    _process.summaries.remove(summary)
    with StopSignal():
        summary.log()


def _tell(error: BaseException) -> tuple[int, str]:
    """Exit code, and the line for the user; empty for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error.exit_code, f"error: {text}"
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, INTERRUPTED
    if has_outside_cause(error):
        told = text
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            told = _show_refusal(error)
        return EXIT_USAGE, f"error: {told}; mend that and run the same command again"
    if isinstance(error, OSError) and error.errno in _OUTSIDE:
        return EXIT_USAGE, f"error: {_show_refusal(error)}; mend that and run the same command again"
    return EXIT_INTERNAL, ""


def _show_refusal(error: OSError) -> str:
    """What the machine refused, and where; without a name of a file in the error, where that may have been."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    try:
        folder = f"TMPDIR, {tempfile.gettempdir()}"
    except OSError:
        folder = "TMPDIR, where nothing can be written"
    return f"{error.strerror or error}, in an output or the folder of temporary files ({folder})"


def _leave_soon(code: int) -> None:
    """Leave with the code even where a thread or a library does not end."""
    timer = threading.Timer(_LEAVE_S, os._exit, [code])
    timer.daemon = True
    timer.start()


def _is_process_of_a_command() -> bool:
    """Whether Python was started for one of our commands: as `python -m tatok_pipe…`, or `tatok`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = os.path.basename(sys.argv[0]) if spec is None else spec.name.partition(".")[0]
    return name == ("tatok" if spec is None else "tatok_pipe")


def _skip_teardown() -> None:
    """Leave without taking the interpreter apart, for which torch and Ray take most of a second. Threads have ended by
    now, and whatever has to be done at exit is done: Ray is shut down, temporary folders are gone."""
    if _process.exit_code is None:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()
    os._exit(_process.exit_code)


def _submission_id() -> str | None:
    """The id that `ray job submit` gave, where it did."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return job.get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None


def _silence_closed_stdout() -> bool:
    """Whether stdout has lost its reader; if so it is pointed at nothing, so that the exit stays quiet too.

    A BrokenPipeError may also come from a socket, and that one must be seen.
    """
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    _point_stdout_at_nothing()
    return True


def _silence_full_stdout() -> None:
    """Drop what stdout holds where it cannot be written: the exit would try again, and tell it in its own way."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _point_stdout_at_nothing()


def _point_stdout_at_nothing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
