"""Of two trainings on one output the second is refused while the first lives, and no longer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.runs.lease import LEASE, hold_output
from tatok_pipe.runs.stop_signal import StopSignal

HOLD = """
import sys, time
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.runs.lease import hold_output
with hold_output(sys.argv[1], StopSignal(), beat_s=0.2):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(url: str, **options: Any) -> str:
    """What is told of the output; empty where it could be held."""
    try:
        with hold_output(url, StopSignal(), **options):
            return ""
    except RefusedError as error:
        assert error.exit_code == 3
        return str(error)


def make_foreign(place: str) -> None:
    """Let the mark be one of another machine, of which nothing can be asked."""
    mark = json.loads(storage.read_bytes(place)) | {"machine": "another", "host": "node-7"}
    storage.publish_bytes(json.dumps(mark).encode(), place, exclusive=False)


def test_the_second_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        told = hold(url)
        assert told.startswith(f"output.url={url}: a run that lives writes there, process {process.pid} on ")
        assert told.endswith("; wait for its end, or give another output.url")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out" / LEASE).exists()  # which blocks nobody
        start = time.monotonic()
        assert hold(url) == "" and time.monotonic() - start < 20
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out" / LEASE).exists()


def test_a_number_that_another_process_has_by_now_is_no_holder(tmp_path: Path) -> None:
    url = str(tmp_path)
    with hold_output(url, StopSignal()):
        mark = json.loads((tmp_path / LEASE).read_text())
    assert mark["process"] == os.getpid()
    (tmp_path / LEASE).write_text(json.dumps(mark))
    assert "a run that lives" in hold(url)
    (tmp_path / LEASE).write_text(json.dumps(mark | {"started": "1"}))
    assert hold(url) == ""


def test_a_mark_of_another_machine_is_watched(tmp_path: Path) -> None:
    url = str(tmp_path)
    with hold_output(url, StopSignal()):
        mark = json.loads((tmp_path / LEASE).read_text())
    place = storage.join(url, LEASE)
    storage.publish_bytes(json.dumps(mark).encode(), place, exclusive=True)
    make_foreign(place)
    start = time.monotonic()
    assert hold(url, dead_after_s=2) == "" and time.monotonic() - start >= 2


def beat(place: str) -> None:
    """What a holder on another machine does to its mark."""
    while True:
        mark = json.loads(storage.read_bytes(place))
        storage.publish_bytes(json.dumps(mark | {"beat": mark["beat"] + 1}).encode(), place, exclusive=False)
        time.sleep(0.3)


def assert_another_machine_is_believed(url: str) -> None:
    place = storage.join(url, LEASE)
    storage.publish_bytes(b'{"token": "other", "beat": 0}', place, exclusive=True)
    make_foreign(place)
    process = multiprocessing.get_context("spawn").Process(target=beat, args=(place,), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 60
        while json.loads(storage.read_bytes(place))["beat"] == 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "on node-7" in hold(url, dead_after_s=30)
    finally:
        process.kill()
        process.join()
    assert hold(url, dead_after_s=1) == ""


def test_a_mark_that_changes_is_alive(tmp_path: Path) -> None:
    assert_another_machine_is_believed(str(tmp_path))


@pytest.mark.s3
def test_on_a_store(s3_url: str) -> None:
    assert_another_machine_is_believed(s3_url)
    with hold_output(s3_url, StopSignal()):
        assert "a run that lives" in hold(s3_url)
    assert hold(s3_url) == ""


def test_a_holder_whose_output_was_taken_stops(tmp_path: Path) -> None:
    stop = StopSignal()
    with hold_output(str(tmp_path), stop, beat_s=0.05):
        time.sleep(0.3)
        assert not stop.is_requested
        other = b'{"token": "other"}'
        storage.publish_bytes(other, storage.join(str(tmp_path), LEASE), exclusive=False)
        deadline = time.monotonic() + 20
        while not stop.is_requested and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stop.is_requested
    assert (tmp_path / LEASE).read_bytes() == other  # it is not ours to remove


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"output.url={tmp_path}/file/out: cannot be written: ") as caught:
        hold(f"{tmp_path}/file/out")
    assert caught.value.exit_code == 2
