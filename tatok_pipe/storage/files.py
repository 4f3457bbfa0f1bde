"""Small whole-file operations by URL: size and ETag, content, listing, removal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tatok_pipe.errors import mark_outside_cause
from tatok_pipe.storage import http, hub, local, retry
from tatok_pipe.storage.advice import no_such_place
from tatok_pipe.storage.faults import LastingError, http_status
from tatok_pipe.storage.listing import forget_listings, list_folder
from tatok_pipe.storage.urls import is_http, is_local, is_s3, open_filesystem, redact, speaks

NO_SIZE = (
    "the server does not tell the size of the file (no Content-Length), so that a part of it could pass for all of it; "
    "download it first"
)

# The content tag, as filesystems call it: the last two are the hub's, of repositories and of buckets.
_TAGS = ("ETag", "etag", "blob_id", "xet_hash")
# The time of modification, as filesystems call it.
_TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What tells one version of a file from another."""

    size_bytes: int
    etag: str = ""  # the store's content tag, without quotes; empty where the filesystem has none
    mtime_ns: int = field(default=0, compare=False)  # time of modification on local disk, a hint; 0: unknown


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as a listing of its directory tells it."""

    name: str  # without the directory
    size_bytes: int
    version: str  # ETag, else the time of modification: another one after the file was replaced; or empty


def file_info(url: str) -> SourceInfo:
    """Size and ETag of the file at `url`, and its time where it is local.

    Raises FileNotFoundError, or IsADirectoryError.
    """
    entry = file_entry(url)
    if entry.get("size") is None:
        raise mark_outside_cause(LastingError(f"{redact(url)}: {NO_SIZE}"))
    return SourceInfo(int(entry["size"]), etag_of(entry), entry.get("mtime_ns", 0))


def file_entry(url: str) -> dict[str, Any]:
    """What the filesystem tells of the file at `url`, as fsspec's `info`. Raises as `file_info`."""
    filesystem, path = open_filesystem(url)
    entry = retry.call(lambda: _ask(filesystem, path), url=url)
    if entry.get("type") == "directory":
        raise mark_outside_cause(IsADirectoryError(f"{redact(url)}: is a directory, expected a file"))
    return entry


def exists(url: str) -> bool:
    """Whether a file (or directory) is at `url` now."""
    filesystem, path = open_filesystem(url)
    try:
        retry.call(lambda: _ask(filesystem, path), url=url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _ask(filesystem: Any, path: str) -> dict[str, Any]:
    if is_http(filesystem):
        return http.file_entry(filesystem, path)
    if hub.is_repository(filesystem, path):
        return hub.file_entry(filesystem, path)
    forget_listings(filesystem)
    entry = filesystem.info(path)
    # fsspec's float is short of nanoseconds.
    return entry | {"mtime_ns": os.stat(path).st_mtime_ns} if is_local(filesystem) else entry


def missing_place(filesystem: Any, path: str, url: str) -> str:
    """Why nothing is at `url`, where the bucket, container or repository that it is in does not exist; else empty."""
    try:
        if any(speaks(filesystem, each) for each in ("s3", "gs", "abfs")):
            retry.call(lambda: filesystem.info(path.partition("/")[0]), url=url)
        elif speaks(filesystem, "hf"):
            retry.call(lambda: filesystem.resolve_path(path), url=url)
    except FileNotFoundError as error:
        return str(error) if speaks(filesystem, "hf") else f"{redact(url)}: {no_such_place(url)}"
    except OSError:
        pass
    return ""


def read_bytes(url: str) -> bytes:
    """The whole content of a file that fits into memory."""
    filesystem, path = open_filesystem(url)
    if hub.is_repository(filesystem, path):
        return retry.call(lambda: hub.read(filesystem, path), url=url)
    return retry.call(lambda: filesystem.cat_file(path), url=url)


def read_at_most(
    url: str, num_bytes: int, *, silence_s: float | None = None, num_attempts: int = retry.NUM_ATTEMPTS
) -> bytes:
    """The content of a file whose size nobody knows; of one with more than `num_bytes` those. A web server is asked
    `num_attempts` times, and given up each time when it is silent for `silence_s`, where that is given."""
    filesystem, path = open_filesystem(url)
    if is_http(filesystem):

        def download() -> bytes:
            with http.Download(filesystem, path, silence_s=silence_s) as answer:
                return answer.read(num_bytes)

        return retry.call(download, url=url, num_attempts=num_attempts)
    stop = min(num_bytes, file_info(url).size_bytes)
    return retry.call(lambda: read_range(filesystem, path, 0, stop), url=url)


def read_tail(url: str, num_bytes: int) -> bytes:
    """The last `num_bytes` of a file, or all of it where it is shorter; in one request where the store has a range that
    counts from the end (S3, Google), else in two."""
    filesystem, path = open_filesystem(url)
    if speaks(filesystem, "s3") or speaks(filesystem, "gs"):
        # Where a server has ranges, but none from the end, it answers with the whole file.
        try:
            return retry.call(lambda: filesystem.cat_file(path, start=-num_bytes), url=url)[-num_bytes:]
        except OSError as error:
            # Of an empty file some have no range at all.
            if http_status(error) != 416 or file_info(url).size_bytes:
                raise
            return b""
    size_bytes = file_info(url).size_bytes
    start = max(0, size_bytes - num_bytes)

    def read() -> bytes:
        if is_http(filesystem):
            data = http.read_tail(filesystem, path, start, size_bytes)
        else:
            data = read_range(filesystem, path, start, size_bytes)
        if len(data) != size_bytes - start:
            raise OSError(f"bytes {start}-{size_bytes}: got {len(data)} of {size_bytes - start} bytes")
        return data

    return retry.call(read, url=url)


def read_range(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of the file at `path`, none of them past its end, in one attempt; fewer where the answer
    ends early."""
    if start == stop:  # a range that no request can ask for: some stores answer with the whole file
        return b""
    if is_http(filesystem):
        return http.read_range(filesystem, path, start, stop)
    if hub.is_repository(filesystem, path):
        return hub.read(filesystem, path, start, stop)
    return filesystem.cat_file(path, start=start, end=stop)


def scan_files(url: str) -> Iterator[ListedFile]:
    """The files directly below the directory `url`, in no order; none where there is no directory.

    One listing, never from a cache: what another machine committed a moment ago is in it. What the filesystem
    answered takes about 1 KB a file and is let go of file by file, so keep less of each. A link to a file is one;
    raises OSError for a link that leads nowhere.
    """
    filesystem, path = open_filesystem(url)
    try:
        entries = list_folder(filesystem, path, url=url)
    except FileNotFoundError:
        return
    while entries:
        entry = entries.pop()
        if entry["type"] == local.BROKEN_LINK:
            raise mark_outside_cause(local.broken_link_error(entry))
        if entry["type"] == "file":
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            yield ListedFile(name, int(entry["size"] or 0), etag_of(entry) or _time_of(entry))


def list_files(url: str) -> dict[str, int]:
    """Name -> size in bytes of the files directly below the directory `url`, by name; as `scan_files`."""
    return dict(sorted((file.name, file.size_bytes) for file in scan_files(url)))


def list_folders(url: str) -> list[str]:
    """The names of the folders directly below the directory `url`, sorted; none where there is no directory."""
    filesystem, path = open_filesystem(url)
    try:
        entries = list_folder(filesystem, path, url=url)
    except FileNotFoundError:
        return []
    names = (str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory")
    return sorted(name.rpartition("/")[2] for name in names)


def remove_folder(url: str) -> None:
    """Remove the folder at `url` with all that is in it; nothing happens where there is none."""
    filesystem, path = open_filesystem(url)
    path = path.rstrip("/")
    # Some object stores keep an emptied folder, as an object whose name ends with a slash, and go on listing it.
    folders = retry.call(lambda: _folders_below(filesystem, path), url=url) if is_s3(filesystem) else []
    forget_listings(filesystem)
    try:
        retry.call(lambda: filesystem.rm(path, recursive=True), url=url)
    except FileNotFoundError:
        return
    for folder in folders:
        retry.call(lambda folder=folder: filesystem.rm_file(folder + "/"), url=url)


def _folders_below(filesystem: Any, path: str) -> list[str]:
    """The folder `path` and those in it, each after what is in it."""
    entries = filesystem.find(path, withdirs=True, detail=True)
    found = {name.rstrip("/") for name, entry in entries.items() if entry.get("type") == "directory"}
    return sorted(found | {path}, reverse=True)


def remove(url: str) -> None:
    """Remove the file at `url`; nothing happens where there is none."""
    filesystem, path = open_filesystem(url)
    try:
        retry.call(lambda: filesystem.rm_file(path), url=url)
    except FileNotFoundError:
        return


def etag_of(entry: dict[str, Any]) -> str:
    """The content tag in an entry of fsspec's `info` or listings, without quotes; empty where it has none."""
    tag = next((entry[name] for name in _TAGS if entry.get(name)), "")
    return str(tag).removeprefix("W/").strip('"')


def _time_of(entry: dict[str, Any]) -> str:
    return next((str(entry[name]) for name in _TIMES if entry.get(name)), "")
