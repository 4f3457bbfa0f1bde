"""A Ray cluster of one node, as an operator starts it: `ray start --head`, with job server, metrics, and a token
without which nobody gets in."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_START_S = 90.0
BIN = Path(sys.executable).parent  # a virtual environment need not be on PATH


@dataclass(frozen=True)
class RayHead:
    """A running head. `env` is what its clients, and the commands that it runs, find it with."""

    api_url: str
    metrics_url: str
    gcs_address: str
    env: dict[str, str]

    def metrics(self) -> str:
        """Prometheus text, as a scraper gets it."""
        return urllib.request.urlopen(self.metrics_url, timeout=10).read().decode()


@contextmanager
def ray_head(env: Mapping[str, str], *, num_cpus: int = 2) -> Iterator[RayHead]:
    """Start a head on free ports, which inherits `env`; it and all that it started are gone at the end."""
    gcs, dashboard, client, metrics, agent = free_ports(5)
    folder = tempfile.mkdtemp(prefix="tatok-ray-")  # short: Ray's sockets lie in it
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **env,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    head = RayHead(
        api_url=f"http://127.0.0.1:{dashboard}",
        metrics_url=f"http://127.0.0.1:{metrics}/metrics",
        gcs_address=f"127.0.0.1:{gcs}",
        env=environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
    )
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
        f"--num-cpus={num_cpus}", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
        # Ten times as often as of itself, so that short jobs are seen while they run.
        '--system-config={"metrics_report_interval_ms": 1000}',
    ]  # fmt: skip
    log = Path(folder, "head.log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        _wait(process, head, log)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)  # ends everything that it started
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], head: RayHead, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(f"{head.api_url}/api/jobs/", timeout=5).read()
            return
        except urllib.error.HTTPError:
            return  # it is there, and wants a token, which Ray's own clients have
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
