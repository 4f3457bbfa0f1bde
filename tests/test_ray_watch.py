"""An embedded Ray whose raylet dies: whoever waits for it is woken, or ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The job asks by itself ("ask"), waits as `ray.get` does ("wait"), or where no handler of Python can run ("stuck").
DRIVER = """
import ctypes, subprocess, sys, time, types
from tatok_pipe.runs.job import job_summary, run_entry
from tatok_pipe.ray_runtime.watch import RayWatch

def main(argv):
    with job_summary("driver") as summary:
        summary.add({"images": 3})
        raylet, gcs = (
            subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
        )
        process = lambda popen: [types.SimpleNamespace(process=popen)]
        watch = RayWatch({"raylet": process(raylet), "gcs_server": process(gcs)}, logs="/the/logs")
        print(raylet.pid, gcs.pid, flush=True)
        try:
            if argv[0] == "stuck":
                libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
                while True:
                    libc.pthread_mutex_lock(mutex)  # the second time for ever, whatever signal comes
            while argv[0] == "wait":
                time.sleep(60)
            while True:
                watch.check()
                time.sleep(0.05)
        finally:
            gcs.kill()

run_entry(main)
"""


def start(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    driver = subprocess.Popen(
        [sys.executable, str(path), how],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    return driver, [int(pid) for pid in driver.stdout.readline().split()]


@pytest.mark.parametrize("how", ["ask", "wait"])
def test_a_dead_raylet_ends_the_job_and_is_named(how: str, tmp_path: Path) -> None:
    driver, (raylet, _) = start(tmp_path, how)
    began = time.monotonic()
    os.kill(raylet, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    assert time.monotonic() - began < 30
    *_, summary, line = errors.splitlines()
    assert line.startswith("error: Ray's raylet (SIGKILL) died") and "/the/logs" in line
    assert '"exit_code": 1, ' in summary and '"images": 3' in summary
    assert "Traceback" not in errors


@pytest.mark.parametrize("how", ["ask", "wait"])
def test_a_ray_that_went_with_a_signal_to_the_whole_job_is_an_interruption(how: str, tmp_path: Path) -> None:
    driver, (_, gcs) = start(tmp_path, how)
    os.kill(gcs, signal.SIGTERM)
    time.sleep(0.3)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 4, errors
    assert '"status": "interrupted", "exit_code": 4, ' in errors.splitlines()[-2]


def test_a_driver_that_cannot_be_woken_is_ended_with_its_summary(tmp_path: Path) -> None:
    driver, (raylet, _) = start(tmp_path, "stuck")
    os.kill(raylet, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    *_, summary, line = errors.splitlines()
    assert line.startswith("error: Ray's raylet (SIGKILL) died")
    assert '"exit_code": 1, ' in summary and '"images": 3' in summary
