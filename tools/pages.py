"""Pages that are written by a command: what `--write` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def write_page(prog: str, description: str | None, make_page: Callable[[], str]) -> None:
    """Print what `make_page` returns, or write it to the file that --write names."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}", description=(description or "").split("\n\n")[0]
    )
    parser.add_argument("--write", type=Path, help="the file to write; without it the page is printed")
    path = parser.parse_args().write
    page = make_page()
    if path is None:
        print(page, end="")
    else:
        path.write_text(page, encoding="utf-8")
