"""Folders of this machine with symbolic links followed; fsspec lists a link as neither a file nor a directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

BROKEN_LINK = "broken link"


def list_folder(path: str) -> list[dict[str, Any]]:
    """What is directly in the folder at `path`, in no order, as fsspec's listings.

    A link has type, size and time of what it leads to; one that leads nowhere, or to itself, has the type BROKEN_LINK.
    """
    with os.scandir(path) as found:
        return [entry for each in found if (entry := _entry(each)) is not None]


def walk(path: str) -> Iterator[dict[str, Any]]:
    """All that is below the folder at `path`, folders too. A link to a folder that it is in ends the way there."""
    yield from _walk(path.rstrip("/") or "/", frozenset())


def broken_link_error(entry: dict[str, Any]) -> OSError:
    return FileNotFoundError(
        f"{entry['name']} is a symbolic link to {entry['destination']}, which does not exist; mend or remove the link"
    )


def _walk(path: str, above: frozenset[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    status = os.stat(path)
    place = (status.st_dev, status.st_ino)
    if place in above:
        return
    for entry in list_folder(path):
        yield entry
        if entry["type"] == "directory":
            try:
                yield from _walk(entry["name"], above | {place})
            except FileNotFoundError:  # removed meanwhile
                continue


def _entry(found: os.DirEntry[str]) -> dict[str, Any] | None:
    entry: dict[str, Any] = {"name": found.path}
    try:
        status = found.stat()
    except OSError as error:
        if not (found.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)):
            if error.errno == errno.ENOENT:  # removed meanwhile
                return None
            raise
        return entry | {"type": BROKEN_LINK, "size": 0, "destination": os.readlink(found.path)}
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
    return entry | {
        "type": kind,
        "size": status.st_size,
        "mtime": status.st_mtime,
        "mtime_ns": status.st_mtime_ns,
    }
