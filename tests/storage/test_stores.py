"""Azure, Google and S3 by their own drivers, against servers on loopback that speak their protocols."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The account that Azurite documents for everybody.
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check(base: str, *left_out: str, **environment: str) -> None:
    own = ("AWS_", "AZURE_", "FSSPEC_", "STORAGE_")
    inherited: Mapping[str, str] = {
        name: value for name, value in os.environ.items() if not name.startswith(own)
    }
    command = [sys.executable, "-m", "tests.storage.store_checks", base, *left_out]
    found = subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0, found.stderr[-4000:]


@pytest.mark.slow
def test_moto(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, tmp_path / "log"):
        who = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}
        check(
            "s3://images/x",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_DEFAULT_REGION="us-east-1",
            **who,
        )


@pytest.mark.slow  # the emulator cannot move files, and gcsfs takes half a minute to believe it
def test_google(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gcp_storage_emulator",
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
    ]
    with running(command, port, tmp_path / "log"):
        check(
            "gs://images/x",
            "a;b.tar",  # the emulator ends a name there
            STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{port}",
            # Else gcsfs asks a server of gRPC, which the emulator has not, what kind of bucket it is.
            GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
            GOOGLE_CLOUD_PROJECT="nobodys",
            FSSPEC_GS_TOKEN="anon",
        )


@pytest.mark.slow
def test_azure(tmp_path: Path) -> None:
    azurite = shutil.which("azurite-blob")
    if azurite is None:
        pytest.skip("needs azurite-blob on the PATH: npm install --global azurite")
    port = free_port()
    command = [azurite, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(tmp_path)]
    # The client may be newer than the server.
    with running(
        [*command, "--silent", "--disableTelemetry", "--skipApiVersionCheck"], port, tmp_path / "log"
    ):
        account = f"AccountName=devstoreaccount1;AccountKey={_AZURITE_KEY}"
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        check(
            "az://images/x",
            AZURE_STORAGE_CONNECTION_STRING=f"DefaultEndpointsProtocol=http;{account};{endpoint};",
        )
