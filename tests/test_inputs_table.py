"""The page on what may go in is what its command gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .image_files.all import all_cases

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/inputs.md"


def test_every_kind_has_its_row():
    page = PAGE.read_text("utf-8")
    missing = {f"| {case.kind} | " for case in all_cases() if f"| {case.kind} | " not in page}
    assert not missing


@pytest.mark.slow
def test_the_page_is_what_its_command_gives(tmp_path):
    written = tmp_path / "inputs.md"
    command = [sys.executable, "-m", "tests.inputs_table", "--write", str(written)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=250)
    assert PAGE.read_text("utf-8") == written.read_text("utf-8"), "make docs-inputs"
