"""What is in the folders of any filesystem: fresh, with links followed, and with the store's errors as they are.

fsspec's `glob` and `find`, where a driver has none of its own, take a folder that cannot be listed for an empty one,
and a link for neither a file nor a folder.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from tatok_pipe.storage import local, retry
from tatok_pipe.storage.urls import is_http, is_local, speaks

Entry = dict[
    str, Any
]  # as fsspec's listings: name, type ("file", "directory", ...), size, and what else it knows

_MAGIC = "*?["
# Their drivers list all below a prefix in few requests, and raise what goes wrong.
_FLAT_STORES = ("s3", "gs", "abfs", "hf")


def list_folder(filesystem: Any, path: str, *, url: str) -> list[Entry]:
    """What is directly in the folder at `path`, in no order. Raises FileNotFoundError where there is none."""
    if is_local(filesystem):
        return retry.call(lambda: local.list_folder(path), url=url)

    def ask() -> list[Entry]:
        forget_listings(filesystem)
        entries = filesystem.ls(path, detail=True)
        forget_listings(filesystem)
        return entries

    folder = path.rstrip("/")
    # An object store may hold an empty object that stands for the folder itself; it is nothing in it.
    return [entry for entry in retry.call(ask, url=url) if str(entry["name"]).rstrip("/") != folder]


def forget_listings(filesystem: Any) -> None:
    """Let what is asked next be asked of the store, and no memory be held by what was."""
    # The hub's driver keeps its listings whatever it was told, and copies them for every thread.
    if speaks(filesystem, "hf"):
        filesystem.dircache.clear()


def find_files(filesystem: Any, path: str, *, url: str) -> dict[str, Entry]:
    """All files below the folder at `path` by name, and broken links; of a file itself, the file; else nothing."""
    if is_local(filesystem):
        try:
            found = retry.call(lambda: list(local.walk(path)), url=url)
        except NotADirectoryError:
            return {path: retry.call(lambda: filesystem.info(path), url=url)}
        except FileNotFoundError:
            return {}
        return {entry["name"]: entry for entry in found if entry["type"] in ("file", local.BROKEN_LINK)}
    if any(speaks(filesystem, each) for each in _FLAT_STORES):
        forget_listings(filesystem)
        try:
            files = retry.call(lambda: filesystem.find(path, detail=True), url=url)
        except FileNotFoundError:
            return {}
        forget_listings(filesystem)
        if isinstance(files, list):  # adlfs, of a file
            return {path: retry.call(lambda: filesystem.info(path), url=url)}
        return files
    try:
        return {entry["name"]: entry for entry in _below(filesystem, path, url) if entry["type"] == "file"}
    except FileNotFoundError:
        return {}


def glob_files(filesystem: Any, path: str, *, url: str) -> dict[str, Entry]:
    """The files, and broken links, whose names match the pattern `path` part by part: `*`, `?`, `[a-z]`, and `**` for
    any folders. A part of a local pattern that is there as it stands is taken as it stands."""
    *folders, last = path.split("/")
    # Before a web server's path stand "http:", "" and the host, which may be [::1].
    num_fixed = 3 if is_http(filesystem) else 1 if path.startswith("/") else 0
    found: list[str | None] = ["/".join(folders[:num_fixed]) if num_fixed else None]
    for part in folders[num_fixed:]:
        as_it_stands: list[str | None] = [part if folder is None else f"{folder}/{part}" for folder in found]
        if part == "**":
            entries = (entry for folder in found for entry in _below(filesystem, folder or "", url))
        elif _is_pattern(part) and not (is_local(filesystem) and any(map(filesystem.isdir, as_it_stands))):
            found, entries = [], _matching(filesystem, found, part, url)
        else:
            found, entries = [*as_it_stands], iter(())
        found += [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
    if last == "**":
        return {
            name: entry
            for folder in found
            for name, entry in find_files(filesystem, folder or "", url=url).items()
        }
    entries = _matching(filesystem, found, last, url)
    return {entry["name"]: entry for entry in entries if entry["type"] in ("file", local.BROKEN_LINK)}


def _matching(filesystem: Any, folders: list[str | None], pattern: str, url: str) -> Iterator[Entry]:
    for folder in folders:
        try:
            entries = list_folder(filesystem, folder or filesystem.root_marker, url=url)
        except (FileNotFoundError, NotADirectoryError):
            continue
        # An entry takes about 1 KB, so what does not match is let go of one by one.
        while entries:
            entry = entries.pop()
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            names = {name, unquote(name)} if is_http(filesystem) else {name}
            if any(fnmatch.fnmatchcase(each, pattern) for each in names):
                yield entry


def _below(filesystem: Any, folder: str, url: str) -> Iterator[Entry]:
    if is_local(filesystem):
        yield from local.walk(folder)
        return
    for entry in list_folder(filesystem, folder, url=url):
        yield entry
        if entry["type"] == "directory":
            try:
                yield from _below(filesystem, entry["name"], url)
            except FileNotFoundError:  # removed meanwhile
                continue


def _is_pattern(part: str) -> bool:
    return any(character in part for character in _MAGIC)
