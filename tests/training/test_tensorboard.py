"""What a training tells to TensorBoard."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

from tatok_pipe import storage
from tatok_pipe.training.tensorboard import TensorBoard

LOSSES = {"loss": 6.8124, "global_nats": 6.1, "grad_norm": 0.5}
SPEED = {"tokens_per_s": 34_120.4, "step_s": 0.25}


def read_events(data: bytes) -> list[Any]:
    """The records of an event file: length, its checksum, content, its checksum."""
    events, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        events.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    assert at == len(data)
    return events


def scalars(url: str) -> dict[tuple[str, int], float]:
    (name,) = storage.list_files(url)
    events = read_events(storage.read_bytes(storage.join(url, name)))
    return {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}


def write(url: str) -> TensorBoard:
    board = TensorBoard(url, first_step=5)
    for step in range(10, 60, 5):
        board.scalars("train", step, LOSSES | {"loss": 7 - step / 100})
        board.scalars("speed", step, SPEED)
    board.scalars("held_out", 55, {"loss": 6.9})
    return board


def check_board(url: str) -> None:
    board = write(url)
    board.publish()
    found = scalars(url)
    # All that was told until now, the last line too.
    assert len(found) == 10 * (len(LOSSES) + len(SPEED)) + 1
    assert found["train/loss", 55] == pytest.approx(6.45)
    assert found["speed/tokens_per_s", 10] == pytest.approx(34_120.4)
    assert found["held_out/loss", 55] == pytest.approx(6.9)
    board.scalars("train", 60, {"loss": 1.0})
    board.close()
    assert scalars(url) == found | {("train/loss", 60): 1.0}


def test_scalars_are_published_to_the_last(tmp_path: Path) -> None:
    check_board(str(tmp_path / "tensorboard"))


@pytest.mark.s3
def test_scalars_are_published_to_s3(s3_url: str) -> None:
    check_board(s3_url)


def test_scalars_of_a_lost_attempt_are_purged_from_the_step_it_went_back_to(tmp_path: Path) -> None:
    TensorBoard(str(tmp_path), first_step=35).close()
    (path,) = tmp_path.iterdir()
    version, start = read_events(path.read_bytes())
    assert version.file_version == "brain.Event:2"
    assert start.step == 35 and start.session_log.status == start.session_log.START


def test_what_cannot_be_written_is_said_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    board = write(f"{tmp_path}/file/tensorboard")
    board.publish()
    board.close()
    assert len(caplog.records) == 2
    assert all(
        f"{tmp_path}/file/tensorboard: TensorBoard's file is not written" in each.message
        for each in caplog.records
    )


def test_a_full_disk_does_not_stop_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        board = write(str(tmp_path / "out"))
        for step in range(60, 300):
            board.scalars("train", step, LOSSES)
            board.scalars("speed", step, SPEED)
        board.publish()
        board.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert "No space left on device" in caplog.text


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    board = write(str(tmp_path / "out"))
    assert os.listdir(tmp_path / "tmp")
    board.close()
    assert not os.listdir(tmp_path / "tmp")
