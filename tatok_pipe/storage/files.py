"""Small whole-file operations by URL: size and ETag, content, listing, removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tatok_pipe.storage import retry
from tatok_pipe.storage.urls import open_filesystem, redact


@dataclass(frozen=True)
class SourceInfo:
    """What tells one version of a file from another."""

    size_bytes: int
    etag: str = ""  # the store's content tag, without quotes; empty where the filesystem has none


def file_info(url: str) -> SourceInfo:
    """Size and ETag of the file at `url`. Raises FileNotFoundError, or IsADirectoryError."""
    filesystem, path = open_filesystem(url)
    entry = retry.call(lambda: filesystem.info(path), url=url)
    if entry.get("type") == "directory":
        raise IsADirectoryError(f"{redact(url)}: is a directory, expected a file")
    return SourceInfo(size_bytes=_size_of(entry, url), etag=_etag_of(entry))


def exists(url: str) -> bool:
    """Whether a file (or directory) is at `url` now."""
    filesystem, path = open_filesystem(url)
    return retry.call(lambda: filesystem.exists(path), url=url)


def read_bytes(url: str) -> bytes:
    """The whole content of a file that fits into memory."""
    filesystem, path = open_filesystem(url)
    return retry.call(lambda: filesystem.cat_file(path), url=url)


def read_tail(url: str, num_bytes: int) -> bytes:
    """The last `num_bytes` of a file, or all of it where it is shorter, in one request."""
    filesystem, path = open_filesystem(url)
    return retry.call(lambda: filesystem.cat_file(path, start=-num_bytes), url=url)


def list_files(url: str) -> dict[str, int]:
    """Name -> size in bytes of the files directly below the directory `url`; empty where there is none.

    One listing, never from a cache: what another machine committed a moment ago is in it.
    """
    filesystem, path = open_filesystem(url)
    try:
        entries = retry.call(lambda: filesystem.ls(path, detail=True), url=url)
    except FileNotFoundError:
        return {}
    named = (
        (str(entry["name"]).rstrip("/").rpartition("/")[2], entry) for entry in entries if _is_file(entry)
    )
    # An object store may hold an empty object that stands for the directory itself; it is no file in it.
    directory = path.rstrip("/")
    return {
        name: int(entry["size"] or 0)
        for name, entry in sorted(named)
        if entry["name"].rstrip("/") != directory
    }


def remove(url: str) -> None:
    """Remove the file at `url`; nothing happens where there is none."""
    filesystem, path = open_filesystem(url)
    try:
        retry.call(lambda: filesystem.rm_file(path), url=url)
    except FileNotFoundError:
        return


def _is_file(entry: dict[str, Any]) -> bool:
    return entry.get("type") == "file"


def _size_of(entry: dict[str, Any], url: str) -> int:
    if entry.get("size") is None:
        raise OSError(f"{redact(url)}: the server does not tell the size of the file")
    return int(entry["size"])


def _etag_of(entry: dict[str, Any]) -> str:
    return str(entry.get("ETag") or entry.get("etag") or "").strip('"')
