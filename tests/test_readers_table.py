"""The page on readers says what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .readers_table import COLUMNS, PAGE, READERS, Found, Reader, _cell, rows, try_reader, write_shard


def row_of(reader: Reader) -> list[str]:
    """The cells of the page but the version."""
    (line,) = [
        line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {reader.name} | ")
    ]
    return line.removeprefix("| ").removesuffix(" |").split(" | ")[2:]


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.ray] if each.package == "ray" else [])
        for each in READERS
        if each.is_for_all
    ],
)
def test_the_page_says_what_a_reader_does(reader: Reader, tmp_path: Path) -> None:
    assert reader.is_here
    assert row_of(reader) == try_reader(reader, write_shard(tmp_path)), "make docs-readers"


def test_every_reader_has_its_row() -> None:
    assert all(len(row_of(reader)) == len(COLUMNS) + 1 for reader in READERS)


def test_what_is_changed_is_seen() -> None:
    """So that a cell without a remark means something."""
    right = [{name: getattr(record, name) for name in COLUMNS} for record in rows()]
    types: dict[str, str] = {name: "t" for name in COLUMNS}
    assert [_cell(Found(types, right), name) for name in COLUMNS] == ["`t`"] * len(COLUMNS)
    for number, name, value, told in (
        (0, "label", float("nan"), "**null is NaN**"),
        (0, "patch_codes", None, "**array([], dtype=uint16) is null**"),
        (0, "caption", "None", "**null is 'None'**"),
        (1, "patch_codes", np.array([-1, 65535]), "**[65535, 65535] is [-1, 65535]**"),
        (1, "label", -1, "is -1**"),
    ):
        wrong = [dict(row) for row in right]
        wrong[number][name] = value
        assert told in _cell(Found(types, wrong), name)
