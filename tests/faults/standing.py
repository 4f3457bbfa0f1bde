"""A Ray cluster that stands, of nodes on this machine, each started as an operator starts it: `ray start --block`.

Where a process of a node dies, `ray start` ends that node, as it ends a pod.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.processes import Family
from tests.infra.ray_head import BIN, free_ports

_START_S = 120.0
_STOP_S = 5.0


def is_raylet(command_line: str) -> bool:
    return Path(command_line.split()[0]).name == "raylet"


class StandingCluster:
    """A head and another node, of one CPU each. Their processes inherit `env`; a job whose environment has `client`
    is run on it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tatok-ray-"))  # short: Ray's sockets lie in it
        (port,) = free_ports(1)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.client = {**token, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        self._env = {**os.environ, **env, **token, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        self._env.pop("RAY_ADDRESS", None)
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._families: list[Family] = []
        try:
            self._start("--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false")
            self._wait_for_port(port)
            self._start(f"--address=127.0.0.1:{port}")
            self._wait_for_raylets()
        except BaseException:
            self.close()
            raise

    @property
    def is_whole(self) -> bool:
        return self._all_run and self._num_raylets == len(self._nodes)

    @property
    def _all_run(self) -> bool:
        return all(node.poll() is None for node in self._nodes)

    @property
    def _num_raylets(self) -> int:
        """Nodes that have one: a process that it is about to start has its name for a moment."""
        self.remember()
        return sum(any(map(is_raylet, family.alive().values())) for family in self._families)

    def remember(self) -> None:
        for family in self._families:
            family.remember()

    def alive(self) -> dict[int, str]:
        """Command lines of its processes, by pid; the actors of jobs on it are among them."""
        return {pid: line for family in self._families for pid, line in family.alive().items()}

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send one of its processes a signal; whether it was still there."""
        return any(family.send(pid, number) for family in self._families)

    def close(self) -> None:
        self.remember()
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)  # ends all that it started
        for node, family in zip(self._nodes, self._families, strict=True):
            try:
                node.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
            family.remember()
            family.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *options: str) -> None:
        with open(self._log, "ab") as log:
            node = subprocess.Popen(
                [str(BIN / "ray"), "start", *options, "--num-cpus=1", "--node-ip-address=127.0.0.1", "--block",
                 "--disable-usage-stats", "--object-store-memory=150000000"],
                env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._nodes.append(node)
        self._families.append(Family(node.pid))

    @property
    def _log(self) -> Path:
        return self._folder / "nodes.log"

    def _wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                self._check_starting(deadline)

    def _wait_for_raylets(self) -> None:
        deadline = time.monotonic() + _START_S
        while self._num_raylets < len(self._nodes):
            self._check_starting(deadline)

    def _check_starting(self, deadline: float) -> None:
        assert self._all_run and time.monotonic() < deadline, self._log.read_text(errors="replace")
        time.sleep(0.2)
