"""Running the job as users do, in processes of their own, and looking at what it left: bytes, processes, files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatok_pipe import storage
from tests.faults.processes import Family

TIMEOUT_S = 200.0
# They watch their raylet, and then tell the GCS of its end for up to a minute, although that is gone as well. They
# hold no shard.
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Done:
    """A job that ended."""

    code: int
    stderr: str
    seconds: float


class Job:
    """A running `python -m tatok_pipe.tokenize_corpus`, leader of its own session, so that all of it can be found.

    As a context manager it leaves no process behind.
    """

    def __init__(self, arguments: list[str], *, env: Mapping[str, str], folder: Path) -> None:
        self._log = folder / f"stderr-{time.monotonic_ns()}.txt"
        self._start = time.monotonic()
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tatok_pipe.tokenize_corpus", *arguments],
                env={**os.environ, **env},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.family = Family(self.process.pid)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.family.remember()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.left_over(within_s=10)
        self.family.kill()

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> Done:
        """The end of the job. Raises AssertionError with its stderr where it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.family.remember()
            try:
                code = self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"still running after {timeout_s:g} s:\n{self.stderr}"
            else:
                return Done(code, self.stderr, time.monotonic() - self._start)

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait for the condition. Raises AssertionError where the job ends before it or it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode} before {what}:\n{self.stderr}"
            )
            assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}:\n{self.stderr}"
            time.sleep(0.02)

    def kill(self, *, group: bool) -> None:
        """SIGKILL to the driver alone, or to every process that it started, too."""
        self.family.remember()
        self.process.kill()
        if group:
            self.family.kill()
        self.process.wait()

    def left_over(self, *, within_s: float) -> list[str]:
        """Command lines of what of the job still runs after `within_s`, Ray's agents on their way out aside."""
        deadline = time.monotonic() + within_s
        while True:
            self.family.remember()
            shown = [line for line in self.family.alive().values() if not line.startswith(_AGENTS)]
            if not shown or time.monotonic() > deadline:
                return shown
            time.sleep(0.1)


def run(arguments: list[str], *, env: Mapping[str, str], folder: Path) -> Done:
    """The job from start to end. Raises AssertionError where something of it still runs 20 s afterwards."""
    with Job(arguments, env=env, folder=folder) as job:
        done = job.wait()
        left = job.left_over(within_s=20)
        assert not left, f"outlived the job by 20 s: {left}"
        return done


def digests(url: str) -> dict[str, str]:
    """SHA-256 of every file of the dataset that holds rows: `data/NAME` and `quarantine/NAME`."""
    return {
        f"{kind}/{name}": hashlib.sha256(storage.read_bytes(storage.join(url, kind, name))).hexdigest()
        for kind in ("data", "quarantine")
        for name in storage.list_files(storage.join(url, kind))
        if not name.startswith(".")
    }


def committed(url: str) -> list[str]:
    """Numbers of the shards that are in the dataset, sorted."""
    names = storage.list_files(storage.join(url, "data"))
    return sorted(name[:6] for name in names if name.endswith(".parquet") and not name.startswith("."))


def summary(url: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(storage.join(url, "_summary.json")))


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process, too: for reading S3, and for what a cluster's nodes inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
