"""Temporary folders: gone when they are done with, and gone with the next run where nobody could see to that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tatok_pipe.storage import temporary

HOLD = """
import sys
from tatok_pipe.storage.temporary import temporary_folder
with temporary_folder() as folder:
    open(folder + "/data", "w").write("1")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._remove_abandoned.cache_clear()
    return tmp_path


def hold(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is at work in a temporary folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(parent)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def age(folder: Path) -> None:
    os.utime(folder, (1, 1))


def test_a_folder_goes_with_its_block(parent: Path) -> None:
    with temporary.temporary_folder() as folder:
        Path(folder, "data").write_text("1")
        assert Path(folder).parent == parent
    assert not list(parent.iterdir())


def test_the_folder_of_a_killed_process_goes_with_the_next_run(parent: Path) -> None:
    killed, left = hold(parent)
    alive, used = hold(parent)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (left / "data").exists()
    for folder in (left, used):
        age(folder)
    with temporary.temporary_folder():
        assert not left.exists()
        assert (used / "data").exists()  # its process is at work
    alive.communicate("")
    assert alive.returncode == 0
    assert not list(parent.iterdir())


def test_what_is_not_known_to_be_abandoned_stays(
    parent: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (parent / "tatok-of-somebody").mkdir()  # has no lock
    age(parent / "tatok-of-somebody")
    (parent / "other").mkdir()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".lock").write_text("")
    (parent / "tatok-link").symlink_to(elsewhere)
    young = parent / "tatok-young"
    young.mkdir()
    (young / ".lock").write_text("")
    with temporary.temporary_folder():
        pass
    assert {path.name for path in parent.iterdir()} == {
        "tatok-of-somebody",
        "other",
        "tatok-link",
        "tatok-young",
    }
    assert (elsewhere / ".lock").exists()
