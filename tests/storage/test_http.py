"""Web servers as they are: with and without ranges, with answers that say less or other than what is so."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError, has_outside_cause
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.storage import random_access, retry

from .web import WebServer

PART = 1 << 16
DATA = random.Random(0).randbytes(20 * PART + 13)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", retry.FIRST_DELAY_S / 1000)


def stream(url: str, **options: Any) -> bytes:
    with storage.open_stream(url, part_bytes=PART, num_parallel=4, **options) as source:
        return source.read()


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"ranges": False},
        {"ranges": False, "says_ranges": True},
        {"ranges": True, "says_ranges": False},
        {"head": 405},
        {"head": 403, "ranges": False},
        {"redirect": "/elsewhere"},
        {"redirect": "/elsewhere", "ranges": False},
        {"etag": False},
    ],
)
def test_the_content_comes_from_every_kind_of_server(kind: dict[str, Any]) -> None:
    with WebServer({"/x.tar": DATA, "/small": DATA[:100], "/empty": b""}, **kind) as server:
        url = f"{server.url}/x.tar"
        info = storage.file_info(url)
        assert info.size_bytes == len(DATA)
        assert stream(url) == stream(url, info=info) == DATA
        assert stream(f"{server.url}/small") == DATA[:100]
        assert (
            stream(f"{server.url}/empty") == b"" and storage.file_info(f"{server.url}/empty").size_bytes == 0
        )
        assert storage.read_tail(url, 50) == DATA[-50:]
        assert storage.read_tail(f"{server.url}/small", 500) == DATA[:100]
        assert storage.read_tail(f"{server.url}/empty", 5) == b""
        assert storage.read_bytes(url) == DATA
        file: Any = storage.open_random_access(url, info=info, block_bytes=PART)
        with file:
            for start, size in ((5 * PART - 3, 7), (0, 10), (len(DATA) - 5, 50)):
                file.seek(start)
                assert file.read(size) == DATA[start : start + size]
            file.check_unchanged()
        assert storage.exists(url) and not storage.exists(f"{server.url}/nothing")
        assert [shard.size_bytes for shard in expand_shards(url)] == [len(DATA)]


def test_without_ranges_the_file_is_sent_about_once() -> None:
    """What a request for a part brings is not read: nothing but what the sockets hold is sent in vain."""
    data = random.Random(1).randbytes(60_000_000)
    with WebServer({"/x.tar": data}, ranges=False) as server:
        url = f"{server.url}/x.tar"
        with storage.open_stream(url, part_bytes=1 << 20) as source:
            assert source.read() == data
        assert server.bytes_sent["GET"] < 1.5 * len(data)
        assert len([each for each in server.requests if each[0] == "GET"]) == 2


def test_a_download_that_breaks_off_is_begun_again() -> None:
    with WebServer({"/x.tar": DATA}, ranges=False) as server:
        server.cut_after = [
            len(DATA) - 1,
            3 * PART + 5,
            100,
        ]  # the first is the question whether there are ranges
        assert stream(f"{server.url}/x.tar") == DATA
        assert not server.cut_after
        server.cut_after = [100] * 99
        with pytest.raises(OSError, match=r"/x\.tar: .*"):
            stream(f"{server.url}/x.tar")


def test_a_file_that_changes_between_two_downloads() -> None:
    with WebServer({"/x.tar": DATA}, ranges=False) as server:
        server.cut_after = [len(DATA) - 1, 3 * PART]  # of the question for ranges, of the first download
        server.after_cuts = {"/x.tar": DATA[::-1]}
        # aiohttp gives nothing of what it holds once it has seen the end of a cut answer, so that where reading
        # stops depends on who is faster; that it stops, and why, does not.
        with pytest.raises(OSError, match="changed while it was downloaded"):
            stream(f"{server.url}/x.tar")


def test_faults_that_pass_are_tried_again_at_look_up_too() -> None:
    with WebServer({"/x.tar": DATA}) as server:
        url = f"{server.url}/x.tar"
        for statuses in ([503, 503], [0, 0], [429, 429, 500, 500], [200, 0, 503]):
            server.statuses = list(statuses)
            assert storage.file_info(url).size_bytes == len(DATA)
            server.statuses = list(statuses)
            assert storage.exists(url)
            server.statuses = list(statuses)
            assert stream(url) == DATA
            server.statuses = list(statuses)
            assert storage.read_tail(url, 10) == DATA[-10:]
            assert [shard.size_bytes for shard in expand_shards(url)] == [len(DATA)]


@pytest.mark.parametrize(
    ("statuses", "kind", "told"),
    [
        ([404, 404], FileNotFoundError, "the server has no such file"),
        ([403, 403], PermissionError, "403, message='Forbidden'"),
        ([401, 401], PermissionError, "401, message='Unauthorized'"),
        ([503] * 10, OSError, "503, message='Service Unavailable'"),
        ([0] * 10, OSError, "reset|disconnected"),
    ],
)
def test_what_stays_is_told_as_it_is(statuses: list[int], kind: type[OSError], told: str) -> None:
    with WebServer({"/x.tar": DATA}) as server:
        server.statuses = list(statuses)
        with pytest.raises(kind, match=told) as raised:
            storage.file_info(f"{server.url}/x.tar")
        assert type(raised.value) is kind and has_outside_cause(raised.value)
        server.statuses = list(statuses)
        if kind is not FileNotFoundError:
            with pytest.raises(UserError, match=told):
                expand_shards(f"{server.url}/x.tar")


def test_nobody_there() -> None:
    with WebServer({}) as server:
        pass
    with pytest.raises(UserError, match=rf"{server.url}/x.tar: Cannot connect to host"):
        expand_shards(f"{server.url}/x.tar")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"length": False, "ranges": False}, "does not tell the size"),
        ({"coding": "gzip"}, r"compressed \(Content-Encoding: gzip\)"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_done(kind: dict[str, Any], told: str) -> None:
    with WebServer({"/x.tar": DATA}, **kind) as server:
        with pytest.raises(UserError, match=told):
            expand_shards(f"{server.url}/x.tar")
        with pytest.raises(OSError, match=told):
            storage.file_info(f"{server.url}/x.tar")


def test_a_server_that_gives_other_parts_than_it_says() -> None:
    with (
        WebServer({"/x.tar": DATA}, shift=1) as server,
        pytest.raises(OSError, match="asked for bytes 0-65535, and"),
    ):
        stream(f"{server.url}/x.tar")


def test_a_server_that_stops_giving_ranges() -> None:
    with WebServer({"/x.tar": DATA}) as server:
        source = storage.open_stream(f"{server.url}/x.tar", part_bytes=PART, num_parallel=1)
        with source:
            assert source.read(PART) == DATA[:PART]
            server.ranges = False
            with pytest.raises(OSError, match="ignores Range"):
                source.read()


def test_no_room_for_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = random_access.shutil.disk_usage("/")
    monkeypatch.setattr(random_access.shutil, "disk_usage", lambda folder: usage._replace(free=len(DATA) - 1))
    with WebServer({"/x.parquet": DATA}, ranges=False) as server:
        url = f"{server.url}/x.parquet"
        with pytest.raises(OSError, match=f"has {len(DATA) - 1} of its {len(DATA)} bytes free"):
            storage.open_random_access(url, info=storage.file_info(url))


def test_a_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with WebServer({"/x.parquet": DATA}, ranges=False) as server:
        url = f"{server.url}/x.parquet"
        file: Any = storage.open_random_access(url, info=storage.file_info(url))
        with file:
            assert file.read() == DATA
        assert not list(tmp_path.iterdir())


def test_closing_ends_a_download() -> None:
    with WebServer({"/x.tar": DATA * 20}, ranges=False) as server:
        source = storage.open_stream(f"{server.url}/x.tar", part_bytes=PART, num_parallel=2)
        source.read(10)
        begun = time.monotonic()
        source.close()
        assert time.monotonic() - begun < 5
        with pytest.raises(ValueError, match="closed"):
            source.read(1)


@pytest.fixture
def python_server(tmp_path: Path) -> Iterator[str]:
    """The server that comes with Python, which knows no ranges; on a port that it chooses."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "-b", "127.0.0.1", "-d", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().partition("(")[2].partition("/)")[0]
        process.terminate()


def test_pythons_own_server(tmp_path: Path, python_server: str) -> None:
    for name in ("a b.tar", "b%20c.tar", "c.tar", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode() + DATA)
    with urllib.request.urlopen(f"{python_server}/c.tar") as answer:
        expected = answer.read()
    assert stream(f"{python_server}/c.tar") == expected
    found = expand_shards(f"{python_server}/*.tar")
    assert [stream(shard.url)[:7] for shard in found] == [b"a b.tar", b"b%20c.t", b"c.tar" + DATA[:2]]
    assert all(shard.size_bytes == storage.file_info(shard.url).size_bytes for shard in found)
