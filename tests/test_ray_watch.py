"""A Ray whose raylet, or whose head, dies: whoever waits for it is woken, or ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The job asks by itself ("ask"), waits as `ray.get` does ("wait"), or where no handler of Python can run ("stuck").
DRIVER = """
import ctypes, socket, subprocess, sys, time, types
from tatok_pipe.runs.job import job_summary, run_entry
from tatok_pipe.ray_runtime.watch import EmbeddedRay, RayWatch

def main(argv):
    with job_summary("driver") as summary:
        summary.add({"images": 3})
        raylet, gcs = (
            subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
        )
        process = lambda popen: [types.SimpleNamespace(process=popen)]
        server = socket.create_server(("127.0.0.1", 0))
        watch = RayWatch(
            EmbeddedRay(
                {"raylet": process(raylet), "gcs_server": process(gcs)},
                address="%s:%d" % server.getsockname(), logs="/the/logs",
            )
        )
        if argv[0] == "deaf":
            server.close()
        print(raylet.pid, gcs.pid, flush=True)
        try:
            if argv[0] == "stuck":
                libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
                while True:
                    libc.pthread_mutex_lock(mutex)  # the second time for ever, whatever signal comes
            while argv[0] != "ask":
                time.sleep(60)
            while True:
                watch.check()
                time.sleep(0.05)
        finally:
            gcs.kill()

run_entry(main)
"""

# Waits as `ray.get` does, while the head of a cluster answers at the address.
JOINED = """
import sys, time
from tatok_pipe.runs.job import job_summary, run_entry
from tatok_pipe.ray_runtime.watch import JoinedRay, RayWatch

def main(argv):
    with job_summary("driver") as summary:
        summary.add({"images": 3})
        watch = RayWatch(JoinedRay(*argv))
        print("watching", flush=True)
        time.sleep(30)

run_entry(main)
"""
RAY_ENDS_US_S = 26  # of which 20 s are for telling it


def start(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    driver = run_driver(tmp_path, DRIVER, how)
    assert driver.stdout is not None
    return driver, [int(pid) for pid in driver.stdout.readline().split()]


def run_driver(tmp_path: Path, code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    path = tmp_path / "driver.py"
    path.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), **env}
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def test_a_gcs_server_that_lives_and_takes_no_connections_is_dead(tmp_path: Path) -> None:
    driver, _ = start(tmp_path, "deaf")
    began = time.monotonic()
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    assert time.monotonic() - began < 30
    assert errors.splitlines()[-1].startswith("error: Ray's gcs_server (it takes no connections) died")


@pytest.mark.slow
def test_a_driver_that_cannot_be_woken_is_ended_with_its_summary(tmp_path: Path) -> None:
    driver, (raylet, _) = start(tmp_path, "stuck")
    os.kill(raylet, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    *_, summary, line = errors.splitlines()
    assert line.startswith("error: Ray's raylet (SIGKILL) died")
    assert '"exit_code": 1, ' in summary and '"images": 3' in summary


@pytest.mark.slow
def test_a_head_that_stays_away_ends_the_job_before_ray_ends_the_process(tmp_path: Path) -> None:
    with listening() as head, listening() as node:
        driver = watch_cluster(tmp_path, head, node)
        began = time.monotonic()
    _, errors = driver.communicate(timeout=60)
    took = time.monotonic() - began
    assert driver.returncode == 1, errors
    *_, summary, line = errors.splitlines()
    assert line.startswith(f"error: the head of the Ray cluster at {address(head)} has not answered for ")
    assert '"exit_code": 1, ' in summary and '"images": 3' in summary
    assert RAY_ENDS_US_S - 20 <= took < RAY_ENDS_US_S
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_node_that_dies_ends_the_job_that_joined_it(tmp_path: Path) -> None:
    with listening() as head:
        with listening() as node:
            driver = watch_cluster(tmp_path, head, node)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1, errors
    *_, summary, line = errors.splitlines()
    told = f"error: the node of the Ray cluster at {address(head)} that this command joined, {address(node)}, died"
    assert line.startswith(told)
    assert '"exit_code": 1, ' in summary and '"images": 3' in summary


@pytest.mark.slow
def test_a_head_that_comes_back_ends_nothing(tmp_path: Path) -> None:
    with listening() as node:
        with listening() as head:
            place = head.getsockname()
            driver = watch_cluster(tmp_path, head, node)
        time.sleep(4)
        with socket.create_server(place):
            _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors


def watch_cluster(tmp_path: Path, head: socket.socket, node: socket.socket) -> subprocess.Popen[str]:
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RAY_ENDS_US_S)}
    driver = run_driver(tmp_path, JOINED, address(head), address(node), **patience)
    assert driver.stdout is not None and driver.stdout.readline() == "watching\n"
    return driver


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A server; its name stays known when it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ADDRESSES[server] = "{}:{}".format(*server.getsockname())
        yield server


ADDRESSES: dict[socket.socket, str] = {}


def address(server: socket.socket) -> str:
    return ADDRESSES[server]
