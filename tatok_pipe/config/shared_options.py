"""Options that several commands share and that belong to no other room."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option

DEMO = "demo"  # for image shards: a small corpus, made where the command is started
DEMO_FOLDER = "tatok_demo"


@config_dataclass
class ProgressConfig:
    every_s: float = option(
        10.0,
        above=0,
        help="a line of progress this often, and _progress.json beside the output, which inspect_tokens --watch shows",
        unit="seconds",
    )
    log_file: str | None = option(
        None, help="the lines of the log go to the end of this file of this machine, too", is_url=True
    )
