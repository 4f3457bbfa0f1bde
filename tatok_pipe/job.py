"""How an entry starts and ends: logging, what a user is told of an error, the exit code, and a last line for machines.

summary {"entry": "tokenize_corpus", "exit_code": 0, "images": 544, "output": "s3://bucket/tokens", …}
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tatok_pipe import __version__
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
from tatok_pipe.finite import to_json_types
from tatok_pipe.log_format import configure_logging

logger = logging.getLogger(__name__)

SUMMARY = "summary "  # what the line begins with, after the time and the name of the logger
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

    A UserError ends as one line on stderr and its own exit code, an error of storage as one line and EXIT_USAGE,
    Ctrl-C as one line and EXIT_INTERRUPTED. A
    reader of our output that went away (`| head`) ends the program in silence. Any other exception is a bug:
    it keeps its traceback and leaves with EXIT_INTERNAL.
    """
    configure_logging(sys.stderr)
    try:
        code = main(sys.argv[1:]) or EXIT_DONE
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _silence_closed_stdout():
            code = _EXIT_PIPE_CLOSED
        else:
            code, told = _tell(error)
            if told:
                print(told, file=sys.stderr)
            else:
                traceback.print_exc()
    raise SystemExit(code)


class JobSummary:
    """What a job's last line says, besides how it ended."""

    def __init__(self, entry: str) -> None:
        self.exit_code = EXIT_DONE
        self._entry = entry
        self._figures: dict[str, Any] = {}
        self._start_s = time.monotonic()

    @property
    def has_begun(self) -> bool:
        return bool(self._figures)

    def add(self, figures: dict[str, Any]) -> None:
        """Figures under names with units, JSON types. What is not finite becomes null."""
        self._figures |= figures

    def log(self, error: str = "") -> None:
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
    the block, or what was set. A command that was refused before it added a figure has none: nothing was begun, and its
    one line says why. Neither have `--help` and the like."""
    summary = JobSummary(entry)
    try:
        yield summary
    except BrokenPipeError:  # the reader of our output has enough
        raise
    except (Exception, KeyboardInterrupt) as error:
        summary.exit_code, told = _tell(error)
        if summary.has_begun or not isinstance(error, UserError):
            summary.log(told.removeprefix("error: ") or f"{type(error).__name__}: {error}")
        raise
    summary.log()


def _tell(error: BaseException) -> tuple[int, str]:
    """Exit code, and the line for the user; empty for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error.exit_code, f"error: {text}"
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted; run the same command again to go on"
    if has_outside_cause(error):
        return EXIT_USAGE, f"error: {text}; mend that and run the same command again"
    return EXIT_INTERNAL, ""


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
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
