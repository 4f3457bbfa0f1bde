from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage


def check_files(base: str) -> None:
    directory = storage.join(base, "data")
    assert storage.list_files(directory) == {}
    assert not storage.exists(storage.join(directory, "a"))
    for name, data in (("b", b"123"), ("a", b""), ("below/c", b"1")):
        storage.publish_bytes(data, storage.join(directory, name), exclusive=True)
        assert storage.exists(storage.join(directory, name))
    assert list(storage.list_files(directory).items()) == [("a", 0), ("b", 3)]
    assert list(storage.list_files(directory + "/").items()) == [("a", 0), ("b", 3)]
    assert storage.read_bytes(storage.join(directory, "b")) == b"123"
    assert storage.file_info(storage.join(directory, "b")).size_bytes == 3
    for num_bytes, expected in ((1, b"3"), (2, b"23"), (3, b"123"), (9, b"123")):
        assert storage.read_tail(storage.join(directory, "b"), num_bytes) == expected
    assert (
        storage.read_tail(storage.join(directory, "a"), 8) == storage.read_at_most(f"{directory}/a", 8) == b""
    )
    for num_bytes in (2, 3, 9):
        assert storage.read_at_most(storage.join(directory, "b"), num_bytes) == b"123"[:num_bytes]
    storage.remove(storage.join(directory, "b"))
    storage.remove(storage.join(directory, "b"))
    assert storage.list_files(directory) == {"a": 0}
    with pytest.raises(FileNotFoundError, match="data/b"):
        storage.read_bytes(storage.join(directory, "b"))
    with pytest.raises(FileNotFoundError, match="data/b"):
        storage.file_info(storage.join(directory, "b"))
    with pytest.raises(IsADirectoryError, match="expected a file"):
        storage.file_info(directory)


def test_local(tmp_path: Path) -> None:
    check_files(str(tmp_path))
    assert storage.file_info(str(tmp_path / "data" / "a")).etag == ""


def test_other_filesystems(probe: Any) -> None:
    check_files("probe://base")


@pytest.mark.s3
def test_s3(s3_url: str) -> None:
    check_files(s3_url)


def check_versions(base: str) -> None:
    """A replaced file has another version, also one of the same size."""
    for name in ("a", "b"):
        storage.publish_bytes(b"one", storage.join(base, name), exclusive=True)
    before = {file.name: file for file in storage.scan_files(base)}
    time.sleep(0.02)
    storage.publish_bytes(b"two", storage.join(base, "b"), exclusive=False)
    after = {file.name: file for file in storage.scan_files(base)}
    assert before["a"] == after["a"]
    assert before["b"].size_bytes == after["b"].size_bytes == 3
    assert before["b"].version != after["b"].version


def test_local_versions(tmp_path: Path) -> None:
    check_versions(str(tmp_path))


def test_versions_on_other_filesystems(probe: Any) -> None:
    check_versions("probe://base")


@pytest.mark.s3
def test_s3_versions_are_etags(s3_url: str) -> None:
    check_versions(s3_url)
    for file in storage.scan_files(s3_url):
        assert file.version == storage.file_info(storage.join(s3_url, file.name)).etag


@pytest.mark.s3
def test_s3_etag_tells_contents_apart(s3_url: str) -> None:
    etags = []
    for name, data in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        storage.publish_bytes(data, storage.join(s3_url, name), exclusive=True)
        etags.append(storage.file_info(storage.join(s3_url, name)).etag)
    assert etags[0] == etags[1] != etags[2]
    assert '"' not in etags[0]
    assert etags[0]


def check_folders(base: str) -> None:
    directory = storage.join(base, "folders")
    assert storage.list_folders(directory) == []
    storage.remove_folder(directory)
    for name in ("file", "b/one", "a/deeper/two", "a/.hidden", "ab/three", ".c/four"):
        storage.publish_bytes(b"1", storage.join(directory, name), exclusive=True)
    assert storage.list_folders(directory) == [".c", "a", "ab", "b"]
    assert storage.list_folders(directory + "/") == [".c", "a", "ab", "b"]
    assert storage.list_folders(storage.join(directory, "a")) == ["deeper"]
    assert storage.list_folders(storage.join(directory, "b")) == []
    storage.remove_folder(storage.join(directory, "a"))  # and not "ab", whose name begins like it
    storage.remove_folder(storage.join(directory, "a"))
    assert storage.list_folders(directory) == [".c", "ab", "b"]
    storage.remove_folder(storage.join(directory, ".c") + "/")
    assert storage.list_folders(directory) == ["ab", "b"]
    assert storage.list_files(directory) == {"file": 1}
    assert not storage.exists(storage.join(directory, "a/deeper/two"))
    assert storage.read_bytes(storage.join(directory, "ab/three")) == b"1"


def test_local_folders(tmp_path: Path) -> None:
    check_folders(str(tmp_path))


def test_folders_on_other_filesystems(probe: Any) -> None:
    check_folders("probe://base")


@pytest.mark.s3
def test_s3_folders(s3_url: str) -> None:
    check_folders(s3_url)


@pytest.mark.s3
def test_s3_folders_of_more_than_one_request_and_with_objects_of_their_own(s3_url: str) -> None:
    filesystem, path = storage.open_filesystem(s3_url)
    filesystem.pipe({f"{path}/many/{number:04d}": b"" for number in range(1001)})
    filesystem.pipe_file(f"{path}/own/", b"")
    filesystem.pipe_file(f"{path}/own/file", b"")
    assert len(storage.list_files(storage.join(s3_url, "many"))) == 1001
    assert storage.list_folders(s3_url) == ["many", "own"]
    storage.remove_folder(storage.join(s3_url, "own"))
    storage.remove_folder(storage.join(s3_url, "many"))
    assert storage.list_folders(s3_url) == []
