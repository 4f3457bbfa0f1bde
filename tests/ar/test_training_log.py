"""What a training tells: its lines, its curve, and scalars that TensorBoard reads."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

from tatok_pipe import storage
from tatok_pipe.ar.training_log import TrainingLog, loss_line, speed_line

LOSSES = {"loss": 6.8124, "global_nats": 6.1, "position_nats": 1.25, "patch_nats": 5.5, "grad_norm": 0.5}
SPEED = {
    "tokens_per_s": 34_120.4, "images_per_s": 812.06, "step_s": 0.25, "fill": 0.9971, "mfu": 0.412,
    "data_wait_share": 0.003,
}  # fmt: skip


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


def write_log(url: str) -> TrainingLog:
    log = TrainingLog(url, curve=[{"step": 5, "split": "train", "loss": 7.0}], first_step=5)
    for step in range(10, 60, 5):
        log.train(step, LOSSES | {"loss": 7 - step / 100}, SPEED)
    log.held_out(55, {"loss": 6.9})
    return log


def check_log(url: str) -> None:
    log = write_log(url)
    log.publish()
    found = scalars(url)
    # All that was told until now, the last line too.
    assert len(found) == 10 * (len(LOSSES) + len(SPEED)) + 1
    assert found["train/loss", 55] == pytest.approx(6.45)
    assert found["speed/tokens_per_s", 10] == pytest.approx(34_120.4)
    assert found["held_out/loss", 55] == pytest.approx(6.9)
    log.train(60, {"loss": 1.0}, {})
    log.close()
    assert scalars(url) == found | {("train/loss", 60): 1.0}


def test_scalars_are_published_to_the_last(tmp_path: Path) -> None:
    check_log(str(tmp_path / "tensorboard"))


@pytest.mark.s3
def test_scalars_are_published_to_s3(s3_url: str) -> None:
    check_log(s3_url)


def test_the_curve_goes_on_and_holds_nothing_of_the_machine(tmp_path: Path) -> None:
    log = write_log(str(tmp_path))
    log.close()
    assert [point["step"] for point in log.curve] == [5, *range(10, 60, 5), 55]
    assert [point["split"] for point in log.curve] == ["train"] * 11 + ["held_out"]
    assert log.curve[1] == {"step": 10, "split": "train"} | LOSSES | {"loss": 6.9}
    assert not any(name in point for name in SPEED for point in log.curve)
    assert json.loads(json.dumps(log.curve)) == log.curve


def test_scalars_of_a_lost_attempt_are_purged_from_the_step_it_went_back_to(tmp_path: Path) -> None:
    TrainingLog(str(tmp_path), curve=[], first_step=35).close()
    (path,) = tmp_path.iterdir()
    version, start = read_events(path.read_bytes())
    assert version.file_version == "brain.Event:2"
    assert start.step == 35 and start.session_log.status == start.session_log.START


def test_what_cannot_be_written_is_said_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    log = write_log(f"{tmp_path}/file/tensorboard")
    log.publish()
    log.close()
    assert len(caplog.records) == 2
    assert all(
        f"{tmp_path}/file/tensorboard: TensorBoard's file is not written" in each.message
        for each in caplog.records
    )
    assert len(log.curve) == 12


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
        log = write_log(str(tmp_path / "out"))
        for step in range(60, 300):
            log.train(step, LOSSES, SPEED)
        log.publish()
        log.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert "No space left on device" in caplog.text
    assert len(log.curve) == 12 + 240


def test_lines_are_short(tmp_path: Path) -> None:
    assert loss_line(LOSSES) == "loss 6.812 (global 6.100, position 1.250, patch 5.500)"
    assert loss_line({"loss": 1.0, "patch_nats": 0.5}) == "loss 1.000 (patch 0.500)"
    assert speed_line(SPEED) == "34,120 tokens/s, 812.1 images/s, fill 99.7 %, MFU 41 %, data wait 0.3 %"


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    log = write_log(str(tmp_path / "out"))
    assert os.listdir(tmp_path / "tmp")
    log.close()
    assert not os.listdir(tmp_path / "tmp")
