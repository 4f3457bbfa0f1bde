"""What the modules that a user starts have in common: options first, and what is slow to import when they are in order.

`tatok_pipe/<name>.py` is an entry, `tatok_pipe/commands/<name>/options.py` its options, which import neither torch nor
Ray nor pyarrow, and `run` in `tatok_pipe/commands/<name>/run.py` does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from tatok_pipe.config.load import load_config
from tatok_pipe.config.shared_options import ProgressConfig
from tatok_pipe.runs.job import job_summary, run_entry
from tatok_pipe.runs.log_format import log_to_file, was_logged

_FIRST_SIGN_S = 1.5  # of silence: what is told sooner needs no word that something goes on


class Entry:
    """A command: called with its arguments it runs here and returns its exit code, as `run_entry` describes them.

    `config_class` is the dataclass of its options, `description` begins with the line that `--help` and the list of
    all commands show.
    """

    def __init__(self, name: str, config_class: type, *, description: str | None) -> None:
        self.name = name
        self.config_class = config_class
        self.summary = (description or "").split("\n\n")[0]

    def __call__(self, argv: list[str]) -> int:
        """Raises UserError for what the command cannot be given, SystemExit after `--help` and `--print-config`."""
        config: Any = load_config(
            self.config_class, argv, prog=f"tatok_pipe.{self.name}", description=self.summary
        )
        run = import_module(f"tatok_pipe.commands.{self.name}.run").run
        progress = getattr(config, "progress", None)
        log_file = progress.log_file if isinstance(progress, ProgressConfig) else None
        with log_to_file(log_file, option="progress.log_file"), job_summary(self.name) as summary:
            summary.exit_code = run(config, argv=argv, summary=summary)
        return summary.exit_code

    def leave_with(self) -> NoReturn:
        """Run with the command line of this process, and leave it with the exit code."""
        with _first_sign(self.name):
            run_entry(self)


@contextmanager
def _first_sign(name: str) -> Iterator[None]:
    """A line that the command has begun, where it has told nothing for a while."""

    def tell() -> None:
        if not was_logged():
            logging.getLogger(f"tatok_pipe.{name}").info("starting")

    timer = threading.Timer(_FIRST_SIGN_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
