from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tatok_pipe import storage
from tatok_pipe.storage import publish

NUM_RACERS = 8


def race(url: str, contents: list[bytes]) -> list[bool]:
    """The answers of one exclusive publication per content, all started at once."""
    barrier = threading.Barrier(len(contents))

    def run(data: bytes) -> bool:
        barrier.wait()
        return storage.publish_bytes(data, url, exclusive=True)

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(run, contents))


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


def test_a_mount_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(publish.os, "link", refuse)
    check_publication(str(tmp_path / "out"), tmp_path)


def test_other_filesystems(probe: Any, tmp_path: Path) -> None:
    check_publication("probe://out", tmp_path)


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
