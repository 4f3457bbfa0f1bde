"""Running the job as users do, in processes of their own, and looking at what it left: bytes, processes, files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatok_pipe import storage

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
        self._known: dict[int, str] = {}
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tatok_pipe.tokenize_corpus", *arguments],
                env={**os.environ, **env},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.remember_processes()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.left_over(within_s=10)
        for pid in self._alive():
            _kill(pid)

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> Done:
        """The end of the job. Raises AssertionError with its stderr where it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.remember_processes()
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
        self.remember_processes()
        self.process.kill()
        if group:
            for pid in self._alive():
                _kill(pid)
        self.process.wait()

    def remember_processes(self) -> None:
        """Note every process of the job that runs now: descendants lose their parent when the driver dies."""
        parents, sessions = _process_table()
        members = {self.process.pid, *self._known}
        members |= {pid for pid, session in sessions.items() if session == self.process.pid}
        grown = True
        while grown:
            found = {pid for pid, parent in parents.items() if parent in members} - members
            members |= found
            grown = bool(found)
        for pid in members & parents.keys():
            self._known.setdefault(pid, _birth(pid))

    def left_over(self, *, within_s: float) -> list[str]:
        """Command lines of what of the job still runs after `within_s`, Ray's agents on their way out aside."""
        deadline = time.monotonic() + within_s
        while True:
            self.remember_processes()
            shown = [_command_line(pid) for pid in self._alive()]
            shown = [line for line in shown if line and not line.startswith(_AGENTS)]
            if not shown or time.monotonic() > deadline:
                return shown
            time.sleep(0.1)

    def _alive(self) -> list[int]:
        # A number may belong to another process by now, so the time of birth counts too.
        return [pid for pid, birth in self._known.items() if birth and _birth(pid) == birth]


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


def _process_table() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and session of every process, by pid."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    return parents, sessions


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ...; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _birth(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return words.decode(errors="replace").strip()[:200]
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
