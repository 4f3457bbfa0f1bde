"""The page on stores has a row of each that its command tries."""

from __future__ import annotations

from pathlib import Path

from .stores_table import stores

PAGE = Path(__file__).parents[1] / "docs" / "stores.md"


def test_every_store_has_its_row() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    tried = [(name.strip(), what.split()[0]) for name, (_, what) in stores().items()]
    missing = [(name, what) for name, what in tried if not any(f"| {name} | {what}" in row for row in rows)]
    assert not missing, "make docs-stores"
