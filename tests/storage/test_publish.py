from __future__ import annotations

import base64
import errno
import hashlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem

from tatok_pipe import storage
from tatok_pipe.commands.demo.server import S3Server
from tatok_pipe.errors import has_outside_cause
from tatok_pipe.storage import publish, published, retry

from .race_checks import race

NUM_RACERS = 8


def check_race(base: str, num_races: int) -> None:
    for index in range(num_races):
        different = [bytes([racer]) * 1000 for racer in range(NUM_RACERS)]
        url = storage.join(base, f"different-{index}")
        won = race(url, different)
        assert won.count(True) == 1
        assert storage.read_bytes(url) == different[won.index(True)]
        # The usual case: all write the same bytes, and still one alone has created the file.
        assert race(storage.join(base, f"same-{index}"), [b"same"] * NUM_RACERS).count(True) == 1


def check_publication(base: str, tmp_path: Path) -> None:
    source = tmp_path / "finished"
    source.write_bytes(b"one")
    url = storage.join(base, "new", "directory", "x")
    assert storage.publish_file(source, url, exclusive=True) is True
    source.write_bytes(b"two")
    assert storage.publish_file(source, url, exclusive=True) is False
    assert storage.read_bytes(url) == b"one"
    assert storage.publish_file(source, url, exclusive=False) is True
    assert storage.read_bytes(url) == b"two"
    assert storage.publish_bytes(b"", url, exclusive=True) is False
    assert storage.publish_bytes(b"", url, exclusive=False) is True
    assert storage.read_bytes(url) == b""
    assert storage.list_files(storage.join(base, "new", "directory")) == {"x": 0}  # no temporary file stays


def test_local(tmp_path: Path) -> None:
    check_publication(str(tmp_path / "out"), tmp_path)


def test_local_race(tmp_path: Path) -> None:
    check_race(str(tmp_path), num_races=20)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_local_file_is_readable_by_others(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        storage.publish_bytes(b"x", str(tmp_path / "x"), exclusive=True)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o644


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_failed_copy_leaves_nothing(tmp_path: Path, exclusive: bool) -> None:
    with pytest.raises(FileNotFoundError):
        storage.publish_file(tmp_path / "nothing", str(tmp_path / "out" / "x"), exclusive=exclusive)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_full_disk_leaves_nothing_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """The error is the kernel's, and comes when half of the file is in its place."""
    source, target = tmp_path / "finished", tmp_path / "out" / "x"
    source.write_bytes(b"new" * 1000)
    target.parent.mkdir()
    if not exclusive:
        target.write_bytes(b"old")
    before = list(target.parent.iterdir())
    seen = []

    def fill_the_disk(content: Any, file: Any, length: int) -> None:
        file.write(content.read(1500))
        file.flush()
        seen.append(sorted(os.listdir(target.parent)))
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(content.read())

    monkeypatch.setattr(published.shutil, "copyfileobj", fill_the_disk)
    with pytest.raises(OSError) as caught:
        storage.publish_file(source, str(target), exclusive=exclusive)
    assert caught.value.errno == errno.ENOSPC
    assert len(seen[0]) == len(before) + 1  # the half was there
    assert list(target.parent.iterdir()) == before
    assert exclusive or target.read_bytes() == b"old"


def test_a_write_that_the_kernel_cuts_leaves_nothing(tmp_path: Path) -> None:
    def allow_64_kib() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    (tmp_path / "finished").write_bytes(bytes(1 << 20))
    program = (
        "import sys; from tatok_pipe import storage; storage.publish_file(*sys.argv[1:], exclusive=True)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "finished"), str(tmp_path / "out" / "x")]
    done = subprocess.run(command, preexec_fn=allow_64_kib, capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_a_mount_without_hard_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(publish.os, "link", refuse)
    check_publication(str(tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_mount_that_cannot_sync(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(publish.os, "fsync", refuse)
    check_publication(str(tmp_path / "out"), tmp_path)


def test_a_disk_that_fails_to_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(publish.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        storage.publish_bytes(b"x", str(tmp_path / "out/x"), exclusive=True)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/nothing/out", "FILE/out"])
def test_a_place_where_nothing_can_be_is_no_bug(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = folder.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(OSError) as caught:
        storage.publish_bytes(b"x", f"{folder}/x", exclusive=True)
    assert has_outside_cause(caught.value)
    with pytest.raises(OSError) as caught:
        storage.find_broken_promise(folder)
    assert has_outside_cause(caught.value)


def test_other_filesystems(probe: Any, tmp_path: Path) -> None:
    check_publication("probe://out", tmp_path)


def test_memory(tmp_path: Path) -> None:
    check_publication(f"memory://{tmp_path.name}", tmp_path)


def test_memory_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a writer is held up between its look and its write."""
    exists = MemoryFileSystem.exists

    def look_slowly(self: MemoryFileSystem, path: str, **options: Any) -> bool:
        found = exists(self, path, **options)
        time.sleep(0.01)
        return found

    monkeypatch.setattr(MemoryFileSystem, "exists", look_slowly)
    check_race(f"memory://{tmp_path.name}", num_races=2)


@pytest.mark.s3
def test_s3(s3_url: str, tmp_path: Path) -> None:
    check_publication(s3_url, tmp_path)


@pytest.mark.s3
def test_s3_race(s3_url: str) -> None:
    check_race(s3_url, num_races=1)  # the losers of this server wait seconds for their answer


@pytest.mark.s3
def test_s3_large_files_go_up_in_parts(s3_url: str, tmp_path: Path) -> None:
    part_bytes = 5 << 20  # the least S3 allows
    url = storage.join(s3_url, "large")
    first, second = (bytes([index]) * (2 * part_bytes + 1) for index in range(2))
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "second").write_bytes(second)
    assert storage.publish_file(tmp_path / "first", url, exclusive=True, part_bytes=part_bytes) is True
    assert storage.file_info(url).etag.endswith("-3")  # the number of parts
    assert storage.publish_file(tmp_path / "second", url, exclusive=True, part_bytes=part_bytes) is False
    assert storage.read_bytes(url) == first
    assert storage.publish_file(tmp_path / "second", url, exclusive=False, part_bytes=part_bytes) is True
    assert storage.read_bytes(url) == second


@pytest.mark.s3
@pytest.mark.slow
def test_s3_race_of_files_larger_than_a_part(s3_url: str, tmp_path: Path) -> None:
    """Exclusive files are one PUT far beyond the size where others are uploaded in parts."""
    size = 101 << 20
    with open(tmp_path / "file", "wb") as file:
        file.truncate(size)
    url = storage.join(s3_url, "x")
    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(lambda _: storage.publish_file(tmp_path / "file", url, exclusive=True), range(2)))
    assert sorted(won) == [False, True]
    info = storage.file_info(url)
    assert info.size_bytes == size
    assert "-" not in info.etag


def lose_the_answer(filesystem: Any) -> Callable[..., Any]:
    """A `put_object` whose first answer is lost: the object is there, the caller sees a broken connection."""
    call_s3 = filesystem._call_s3
    lost = []

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        result = await call_s3(method, *arguments, **options)
        if method == "put_object" and not lost:
            lost.append(method)
            raise ConnectionResetError("connection lost after the upload")
        return result

    return call


@pytest.mark.s3
def test_s3_own_upload_with_a_lost_answer_counts_as_won(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(s3_url, "x")
    filesystem, _ = storage.open_filesystem(url)
    monkeypatch.setattr(filesystem, "_call_s3", lose_the_answer(filesystem))
    assert storage.publish_bytes(b"same", url, exclusive=True) is True
    assert storage.publish_bytes(b"same", url, exclusive=True) is False


@pytest.mark.s3
def test_s3_outage_is_waited_out(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(s3_url, "x")
    filesystem, _ = storage.open_filesystem(url)
    call_s3 = filesystem._call_s3
    outages = [500, 503, 409]

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        if outages:
            status = outages.pop()
            response: Any = {"Error": {"Code": "?"}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise OSError("outage") from ClientError(response, method)
        return await call_s3(method, *arguments, **options)

    monkeypatch.setattr(filesystem, "_call_s3", call)
    assert storage.publish_bytes(b"x", url, exclusive=True) is True
    assert not outages


@pytest.mark.s3
def test_s3_refused_credentials_fail_at_once(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))
    with pytest.raises(PermissionError, match=s3_url):
        storage.publish_bytes(b"x", storage.join(s3_url, "x"), exclusive=True)


BODY = b"what was meant to arrive, whole " * 100


class FlippingProxy:
    """Between a client and a server: flips a bit in the first `num_flips` bodies that begin like BODY."""

    def __init__(self, endpoint_url: str, num_flips: float) -> None:
        self.left, self.num_bodies = num_flips, 0
        url = urlsplit(endpoint_url)
        self._target = (url.hostname or "", url.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        try:
            while data := source.recv(1 << 20):
                if is_request and (at := data.find(BODY[:64])) >= 0:
                    self.num_bodies += 1
                    if self.left > 0:
                        self.left -= 1
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def flip(
    s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], FlippingProxy]]:
    """`flip(n)` puts a proxy that flips n bodies between us and the server; only our own retries are left."""
    proxies = []

    def start(num_flips: float) -> FlippingProxy:
        proxies.append(FlippingProxy(s3_server.endpoint_url, num_flips))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[-1].endpoint_url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.001)
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.mark.s3
@pytest.mark.parametrize("exclusive", [True, False])
def test_s3_a_body_flipped_on_the_way_is_sent_again(
    flip: Callable[[float], FlippingProxy], s3_url: str, exclusive: bool
) -> None:
    proxy = flip(2)
    url = storage.join(s3_url, "x")
    assert storage.publish_bytes(BODY, url, exclusive=exclusive) is True
    assert (proxy.left, proxy.num_bodies) == (0, 3)
    assert storage.read_bytes(url) == BODY


@pytest.mark.s3
@pytest.mark.parametrize("exclusive", [True, False])
def test_s3_a_body_that_never_arrives_whole_is_an_error_and_no_object(
    flip: Callable[[float], FlippingProxy], s3_url: str, tmp_path: Path, exclusive: bool
) -> None:
    flip(float("inf"))
    (tmp_path / "file").write_bytes(BODY)
    with pytest.raises(OSError, match=f"{s3_url}/x: .*did not match what we received"):
        storage.publish_file(tmp_path / "file", storage.join(s3_url, "x"), exclusive=exclusive)
    assert storage.list_files(s3_url) == {}


@pytest.fixture
def put_calls(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call to the store, with its options."""
    calls: list[dict[str, Any]] = []
    filesystem, _ = storage.open_filesystem(s3_url)
    call_s3 = filesystem._call_s3

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        calls.append({"method": method, **options})
        return await call_s3(method, *arguments, **options)

    monkeypatch.setattr(filesystem, "_call_s3", call)
    return calls


@pytest.mark.s3
def test_s3_a_put_carries_the_md5_of_the_file(put_calls: list[dict[str, Any]], s3_url: str) -> None:
    storage.publish_bytes(BODY, storage.join(s3_url, "x"), exclusive=True)
    expected = base64.b64encode(hashlib.md5(BODY).digest()).decode()
    puts = [call for call in put_calls if call["method"] == "put_object"]
    assert [call["ContentMD5"] for call in puts] == [expected]
    # Whether something is there, and whether it has arrived: the ETag says all.
    assert [call["method"] for call in put_calls] == ["head_object", "put_object", "head_object"]


def corrupt_inside(filesystem: Any, num_times: int) -> Callable[..., Any]:
    """A client library that breaks the body before it signs it, for a store that does not know Content-MD5."""
    call_s3, left = filesystem._call_s3, [num_times]

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        if method == "put_object" and left[0]:
            left[0] -= 1
            options["Body"] = b"?" + options["Body"][1:]
            del options["ContentMD5"]
        return await call_s3(method, *arguments, **options)

    return call


@pytest.mark.s3
def test_s3_wrong_content_that_the_store_took_is_removed_and_sent_again(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = storage.join(s3_url, "x")
    filesystem, _ = storage.open_filesystem(url)
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(filesystem, "_call_s3", corrupt_inside(filesystem, 1))
    assert storage.publish_bytes(BODY, url, exclusive=True) is True
    assert storage.read_bytes(url) == BODY
    other = storage.join(s3_url, "y")
    monkeypatch.setattr(filesystem, "_call_s3", corrupt_inside(filesystem, 100))
    with pytest.raises(OSError, match="the object that arrived is not the file that was sent"):
        storage.publish_bytes(BODY, other, exclusive=True)
    assert list(storage.list_files(s3_url)) == ["x"]


@pytest.mark.s3
def test_s3_without_an_md5_for_an_etag_the_object_is_read_back(
    put_calls: list[dict[str, Any]], s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, _ = storage.open_filesystem(s3_url)
    call_s3 = filesystem._call_s3

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        result = await call_s3(method, *arguments, **options)
        return {**result, "ETag": '"' + "0" * 32 + '"'} if method == "head_object" else result

    monkeypatch.setattr(filesystem, "_call_s3", call)
    monkeypatch.setattr(publish, "_READ_BYTES", 1000)
    assert storage.publish_bytes(BODY, storage.join(s3_url, "x"), exclusive=True) is True
    assert [call["method"] for call in put_calls].count("get_object") == 4  # 3,200 bytes
    assert storage.read_bytes(storage.join(s3_url, "x")) == BODY
