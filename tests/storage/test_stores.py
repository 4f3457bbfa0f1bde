"""Azure, Google and S3 by their own drivers, against servers on loopback that speak their protocols."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import servers

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "start, left_out",
    [
        (servers.moto, ()),
        (servers.fake_gcs_server, ()),
        (servers.azurite, ()),
        (servers.hub, ()),
        (servers.gcp_storage_emulator, ("a;b.tar",)),  # it ends a name there
    ],
)
def test_what_every_store_has_to_do(start: servers.Start, left_out: tuple[str, ...], tmp_path: Path) -> None:
    with start(tmp_path) as store:
        command = [sys.executable, "-m", "tests.storage.store_checks", store.url, *left_out]
        environment = servers.clean_environment(store)
        found = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
    assert found.returncode == 0, found.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("check", ["check_content", "check_shards"])
def test_sftp(check: str, tmp_path: Path) -> None:
    """Its driver is for one thread, and would wait for ever for an answer that another one took."""
    pytest.importorskip("asyncssh")
    pytest.importorskip("paramiko")
    program = f"import sys; from tests.storage import store_checks; store_checks.{check}(sys.argv[1])"
    with servers.sftp(tmp_path) as store:
        environment = servers.clean_environment(store)
        command = [sys.executable, "-c", program, f"{store.url}/{check}"]
        found = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
    assert found.returncode == 0, found.stderr[-4000:]
