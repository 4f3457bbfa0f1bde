"""Generator training on a disk that fills up: one line, nothing is tried again, and what was saved is not lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tatok_pipe.ar.checkpoint import load_generator
from tests.test_train_ar import CONFIG, prepare, run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

DISK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("disk"), CONFIG)


def fill(disk: Path, *, leave_bytes: int) -> Path:
    filler = disk / "filler"
    filler.write_bytes(bytes(DISK_BYTES - leave_bytes))
    return filler


@pytest.mark.parametrize("upload", ["sync", "async"])
def test_no_space_for_checkpoints_is_one_line(
    folder: Path, full_disk: Callable[[int], Path], upload: str
) -> None:
    disk, saved = full_disk(DISK_BYTES), f"checkpoints.upload={upload}"
    done = run(folder, f"output.url={disk}/probe", "training.steps=20", saved)
    assert done.returncode == 0, done.stderr
    files = next(disk.glob("probe/checkpoints/step-*")).iterdir()
    checkpoint_bytes = sum(path.stat().st_size for path in files)
    shutil.rmtree(disk / "probe")

    filler = fill(disk, leave_bytes=int(1.5 * checkpoint_bytes) + (64 << 10))  # the second one has no room
    failed = run(folder, f"output.url={disk}/out", saved)
    told = failed.stdout + failed.stderr
    assert failed.returncode == 2, told
    (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"/out/checkpoints/step-\d{9}-\w{8}: the checkpoint cannot be written: No space", error)
    assert "make room" in error and "the same command goes on" in error
    assert "Traceback" not in told
    assert told.count("worker 0 of 1") == 1  # nothing is tried again

    filler.unlink()
    done = run(folder, f"output.url={disk}/out", saved)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 20 from" in done.stdout + done.stderr
    curve = load_generator(f"{disk}/out/generator").training["curve"]
    assert curve[-1]["step"] == 200


def test_no_space_to_put_a_checkpoint_together_is_one_line(
    folder: Path, full_disk: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = full_disk(DISK_BYTES)
    fill(disk, leave_bytes=128 << 10)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Ray itself has its room
    failed = run(folder, f"output.url={tmp_path}/out")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert re.search(rf"{disk}: a checkpoint cannot be written there: No space left.*TMPDIR", failed.stderr)
    assert "Traceback" not in failed.stdout + failed.stderr
