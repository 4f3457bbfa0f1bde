from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.parse
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.commands.demo import server as demo_server
from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_list import expand_shards

pytestmark = pytest.mark.s3


def answers(server: demo_server.S3Server) -> bool:
    address = urllib.parse.urlparse(server.endpoint_url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def use(server: demo_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def test_two_servers_side_by_side_and_one_again(
    s3_server: demo_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with demo_server.s3_server(tmp_path, bucket="other") as server:
        assert answers(server) and answers(s3_server)
        use(server, monkeypatch)
        storage.publish_bytes(b"kept", "s3://other/x", exclusive=True)
        with pytest.raises(UserError):
            expand_shards("s3://tatok/*.tar")
    assert not answers(server)
    assert answers(s3_server)
    with demo_server.s3_server(tmp_path, bucket="other") as server:
        use(server, monkeypatch)
        assert storage.read_bytes("s3://other/x") == b"kept"
        log = server.log_path.read_text(errors="replace")
    assert server.secret_key not in log
    assert not answers(server)


def test_a_killed_owner_leaves_no_server(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from tatok_pipe.commands.demo.server import s3_server
        with s3_server(sys.argv[1], bucket="other") as server:
            print(server.endpoint_url, flush=True)
            time.sleep(60)
        """
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    ) as owner:
        assert owner.stdout is not None
        server = demo_server.S3Server(owner.stdout.readline().strip(), "", "", "other", tmp_path)
        assert answers(server)
        owner.kill()
    deadline = time.monotonic() + 15
    while answers(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not answers(server)
    # Nobody was there to take these away.
    ports = set(re.findall(r"\b\d{4,5}\b", (tmp_path / "server.log").read_text(errors="replace")))
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        if path.stem.rpartition("-")[2] in ports:
            path.unlink()


def test_bucket_names_s3_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 to 63"), demo_server.s3_server(tmp_path, bucket="ab"):
        pass
