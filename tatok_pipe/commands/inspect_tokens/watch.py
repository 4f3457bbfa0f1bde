"""A run, looked at from outside: what `_progress.json` beside its output says, in a terminal and as a page."""

from __future__ import annotations

import logging
import os
import sys
import time

from tatok_pipe import storage
from tatok_pipe.commands.inspect_tokens.options import NO_REPORT, REPORT_FILE, InspectTokensConfig
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, UserError
from tatok_pipe.report.figures import format_lines
from tatok_pipe.report.progress_page import progress_line, progress_lines, render_progress, tell_status
from tatok_pipe.runs.progress_file import DONE, PROGRESS_FILE, RUNNING, Progress, read_progress, tell_death

logger = logging.getLogger("tatok_pipe.inspect_tokens")

PAGE_FILE = "progress.html"
_LOOK_EVERY_S = 2.0
_MISSED = 2  # times that the file did not change while it was watched, before clocks are believed


def watch(config: InspectTokensConfig, *, every_s: float = _LOOK_EVERY_S) -> int:
    """Show how far the run is until it is over; exit code: 0 where it came to its end, 1 where it ended otherwise or
    seems to have died. Raises UserError where no run tells anything, KeyboardInterrupt as it comes."""
    url = config.input.url
    screen, page = _Screen(storage.redact(url)), _Page(config)
    seen, seen_s = "", time.monotonic()
    while True:
        progress = _read(url)
        if progress.written != seen:
            seen, seen_s = progress.written, time.monotonic()
        was_still = time.monotonic() - seen_s >= _MISSED * progress.every_s
        death = tell_death(progress, may_be_silent=not was_still)
        is_over = bool(death) or progress.status != RUNNING
        told = (
            f"seems to have died: {death}; the same command does the rest" if death else tell_status(progress)
        )
        screen.show(progress, told)
        page.show(progress, told, is_over=is_over)
        if is_over:
            return EXIT_DONE if progress.status == DONE else EXIT_FAILED_SHARDS
        time.sleep(every_s)


def _read(url: str) -> Progress:
    progress = read_progress(url)
    if progress is None:
        raise UserError(
            f"{storage.redact(url)}: no {PROGRESS_FILE} there, so no run tells how far it is; give the output.url of a "
            "run that goes on (in repositories of the Hugging Face hub there is none)"
        )
    return progress


class _Screen:
    """On a terminal the lines are drawn over the ones before; else there is a line for each news."""

    def __init__(self, shown_url: str) -> None:
        self._shown_url = shown_url
        self._num_lines = 0
        self._last = ("", "")

    def show(self, progress: Progress, told: str) -> None:
        if not sys.stdout.isatty():
            if (progress.written, told) != self._last:
                print(progress_line(progress, told=told), flush=True)
            self._last = (progress.written, told)
            return
        width = os.get_terminal_size(sys.stdout.fileno()).columns
        text = format_lines(progress_lines(progress, url=self._shown_url, told=told))
        lines = [line[: width - 1] for line in text.split("\n")]
        up = f"\x1b[{self._num_lines}F" if self._num_lines else ""
        print(f"{up}\x1b[J" + "\n".join(lines), flush=True)
        self._num_lines = len(lines)


class _Page:
    """The page beside the report, where one is wanted and the store does not keep every state of it."""

    def __init__(self, config: InspectTokensConfig) -> None:
        report = config.output.report or storage.join(config.input.url, REPORT_FILE)
        folder = os.path.dirname(report)
        self._target = storage.join(folder, PAGE_FILE) if folder else PAGE_FILE
        self._is_wanted = report != NO_REPORT and not storage.commits_each_write(report)
        self._shown_url = storage.redact(config.input.url)

    def show(self, progress: Progress, told: str, *, is_over: bool) -> None:
        if not self._is_wanted:
            return
        text = render_progress(progress, url=self._shown_url, told=told, is_over=is_over)
        try:
            storage.publish_bytes(text.encode(), self._target, exclusive=False)
        except OSError as error:
            self._is_wanted = False
            logger.warning("no page: %s cannot be written: %s", storage.redact(self._target), error)
