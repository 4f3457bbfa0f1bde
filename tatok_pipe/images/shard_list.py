"""From what a user wrote to the list of image shards: braces, globs, list files, directories."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from braceexpand import braceexpand
from fsspec.core import split_protocol

from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_formats import SHARD_SUFFIXES, SUFFIXES_BY_RANK
from tatok_pipe.storage import ShardFile, local
from tatok_pipe.storage.files import exists, file_entry, missing_place, read_bytes
from tatok_pipe.storage.listing import find_files, glob_files
from tatok_pipe.storage.lookup import ask, look_up, read_entries, shard_file, unreachable
from tatok_pipe.storage.urls import (
    canonical_url,
    file_name,
    is_local,
    is_web_url,
    name_listed,
    names_filesystem_within,
    open_filesystem,
    openable_url,
    redact,
)

_NUM_SHOWN = 3
_EXPECTED = (
    "give .tar files, a glob such as 's3://bucket/train/*.tar', a brace range such as 'train/{000000..000127}.tar', a "
    "directory, or @list.txt"
)
_ENDINGS = " or ".join(", ".join(suffixes[0] for suffixes in SUFFIXES_BY_RANK).rsplit(", ", 1))
_LIST_SIGN = re.compile(r"::(?![\w:.%]*\])")  # not the one in http://[::1]/


class NoShards(UserError):
    """There are files, and by their names none is an image shard: `files`, in no order, and in `broken`, by name, links
    that lead nowhere. `folder` is the URL of the directory that was given; empty where it was a pattern."""

    def __init__(self, message: str, files: list[ShardFile], broken: dict[str, OSError], folder: str) -> None:
        super().__init__(message)
        self.files, self.broken, self.folder = files, broken, folder


def expand_shards(spec: str | Sequence[str]) -> list[ShardFile]:
    """The image shards that `spec` means, each once, in the order given; local ones as absolute paths.

    An item is a URL or path, with `{000..127}` or `{a,b}` expanded as a shell does, one with `*`, `?` or
    `[a-z]` (sorted), a directory or the prefix that stands for one (every shard below it, sorted), several of
    these with `::` between them, as WebDataset has it, or `@list.txt`: a file, local or remote, with one such item
    a line, where `#` begins a comment. Where a file (but a web server's) has the very name that was given, with
    all its signs, it is meant. `::` behind a filesystem that reads out of another one (`simplecache::s3://…`,
    `zip://a.tar::s3://…`) belongs to the URL. Symbolic links are followed; raises UserError for one that leads nowhere.

    Where tars, compressed or not, are in a directory or match a pattern, they are the shards, else the `.zip` files,
    else the `.parquet` files; of a pattern that matches none of them, all that it matches. Names that begin with `.` or
    `_` do not count, unless they are given or the pattern begins so. Sizes and ETags come from the listings; a remote
    directory is listed once, however many shards are named in it. Where nothing can be listed, every shard is asked for
    by itself, some at a time. Raises UserError for an empty name, before anything is opened, for one that does not
    exist, and where nothing is left.
    """
    items = [spec] if isinstance(spec, str) else list(spec)
    if not items or not all(item.strip().lstrip("@").strip() for item in items):
        raise UserError(f"{_shown(items)}: names no image shard; {_EXPECTED}")
    shards: dict[str, ShardFile] = {}
    unseen: dict[str, None] = {}  # named, in no listing so far
    for item in items:
        for file, is_listed in _expand(item):
            # A web server's page of links has names alone.
            is_listed = is_listed and file.size_bytes is not None
            key = canonical_url(file.url)
            if key == file.url:
                key = file.url  # one string in memory, not two
            if key not in shards:
                shards[key] = file
                if not is_listed:
                    unseen[key] = None
            elif is_listed and key in unseen:
                shards[key] = ShardFile(shards[key].url, file.size_bytes, file.etag, file.mtime_ns)
                del unseen[key]
    missing = look_up(shards, unseen, ask)
    if missing:
        filesystem, path = open_filesystem(missing[0])
        if told := missing_place(filesystem, path, missing[0]):
            raise UserError(told)
        for url in missing:
            if os.path.islink(url):
                entry = {"name": url, "destination": os.readlink(url)}
                raise UserError(str(local.broken_link_error(entry)))
        shown = ", ".join(redact(url) for url in missing[:_NUM_SHOWN])
        more = f" and {len(missing) - _NUM_SHOWN} more" if len(missing) > _NUM_SHOWN else ""
        raise UserError(
            f"{_shown(items)}: {len(missing)} of {len(shards)} image shards do not exist: {shown}{more}; "
            "correct the name or the brace range"
        )
    if not shards:
        raise UserError(f"{_shown(items)}: no image shard; {_EXPECTED}")
    return list(shards.values())


def _expand(item: str) -> Iterator[tuple[ShardFile, bool]]:
    """The files that `item` means, and whether a listing had them, so that they exist."""
    item = item.strip()
    if _is_there_as_written(item):
        yield from _expand_name(item)
        return
    parts = _split_list(item)
    if len(parts) > 1:
        for part in parts:
            yield from _expand(part)
        return
    if item.startswith("@"):
        for line in _lines(item[1:]):
            yield from _expand(line)
        return
    if item.startswith("pipe:"):
        raise UserError(f"{redact(item)}: a shell command, and none is run; give the URL that it reads")
    for url in _expand_braces(item):
        if not url.strip():  # it would mean the working directory
            raise UserError(
                f"{redact(item)}: one of the words in its braces is empty; write each as a whole name"
            )
        if not _is_pattern(url) or url != item and _is_there_as_written(url):
            yield from _expand_name(url)
        else:
            yield from ((file, True) for file in _match(url))


def _expand_name(url: str) -> Iterator[tuple[ShardFile, bool]]:
    if is_web_url(url) or file_name(url).endswith(SHARD_SUFFIXES):
        yield ShardFile(openable_url(url), None), False
    else:
        yield from _expand_directory(url)


def _is_there_as_written(item: str) -> bool:
    """Whether a name with signs that mean something else is the name of a file or directory. Nobody has such names on
    a web server, where they are escaped, and some servers have a page for every name."""
    if is_web_url(item) or not ("::" in item or any(sign in item for sign in "*?[{}\\")):
        return False
    if "::" in item:
        return split_protocol(item)[0] is None and os.path.lexists(item)
    filesystem, path = open_filesystem(item)
    if is_local(filesystem):
        return os.path.lexists(path)
    try:
        return exists(item)
    except PermissionError:
        return False
    except OSError as error:
        raise unreachable(error) from error


def _split_list(item: str) -> list[str]:
    """The parts of WebDataset's list `a.tar::b.tar`. A part that names a filesystem within another one stays with what
    follows it."""
    *pieces, last = _LIST_SIGN.split(item)
    parts = [""]
    for piece in pieces:
        parts[-1] += piece
        if names_filesystem_within(piece):
            parts[-1] += "::"
        else:
            parts.append("")
    parts[-1] += last
    if pieces and not all(parts):
        raise UserError(f"{redact(item)}: nothing before or behind '::'; write a list as a.tar::b.tar")
    return parts


def _lines(list_url: str) -> Iterator[str]:
    try:
        text = read_bytes(list_url).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"@{redact(list_url)}: cannot read the list of shards: {error}") from error
    # A '#' inside a word belongs to the URL; a comment follows a space or begins the line.
    lines = ((" " + line).partition(" #")[0].strip() for line in text.splitlines())
    return (line for line in lines if line)


def _expand_braces(item: str) -> list[str]:
    if not any(character in item for character in "{}\\"):
        return [item]
    try:
        return list(braceexpand(item))
    except ValueError as error:
        raise UserError(f"{redact(item)}: unbalanced braces; write a range as {{000000..000127}}") from error


def _is_pattern(url: str) -> bool:
    if not is_web_url(url):
        return any(character in url for character in "*?[")
    return any(character in "".join(url.split("/", 3)[3:]) for character in "*[")  # a host may be [::1]


def _match(url: str) -> list[ShardFile]:
    filesystem, path = open_filesystem(url)
    found = read_entries(lambda: glob_files(filesystem, path, url=url))
    start = path.rpartition("/")[2][:1]

    def is_shown(name: str) -> bool:
        base = name.rpartition("/")[2]
        return not base.startswith((".", "_")) or base.startswith(start)

    names = [name for name in found if is_shown(name)]
    return _listed(filesystem, url, path, found, _shards_among(names) or sorted(names))


def _expand_directory(url: str) -> Iterator[tuple[ShardFile, bool]]:
    filesystem, path = open_filesystem(url)
    found = read_entries(lambda: find_files(filesystem, path, url=url))
    if list(found) == [path] or not (found or _is_directory(url)):
        yield ShardFile(openable_url(url), None), False  # a shard without suffix, or nothing
        return
    start = len(path.rstrip("/"))
    names = [name for name in found if not any(part[:1] in "._" for part in name[start:].split("/") if part)]
    yield from ((file, True) for file in _listed(filesystem, url, path, found, _shards_among(names)))


def _is_directory(url: str) -> bool:
    try:
        read_entries(lambda: file_entry(url))
    except IsADirectoryError:
        return True
    return False


def _shards_among(names: Iterable[str]) -> list[str]:
    names = list(names)
    for suffixes in SUFFIXES_BY_RANK:
        if chosen := [name for name in names if name.lower().endswith(suffixes)]:
            return sorted(chosen)
    return []


def _listed(
    filesystem: Any, url: str, path: str, found: dict[str, dict[str, Any]], names: list[str]
) -> list[ShardFile]:
    """The files of `names`, with what `found` says of them; `found` is emptied on the way."""
    if not names:
        if told := missing_place(filesystem, path, url):
            raise UserError(told)
        raise _no_shards(filesystem, url, path, found)
    for name in names:
        if found[name]["type"] == local.BROKEN_LINK:
            raise UserError(str(local.broken_link_error(found[name])))
    return _take(filesystem, url, path, found, names)


def _take(
    filesystem: Any, url: str, path: str, found: dict[str, dict[str, Any]], names: list[str]
) -> list[ShardFile]:
    is_here = is_local(filesystem)
    # An entry takes about 1 KB, a ShardFile a quarter of it: never both for all of a million shards.
    files = [shard_file(name if is_here else name_listed(url, path, name), found.pop(name)) for name in names]
    found.clear()
    return files


def _no_shards(filesystem: Any, url: str, path: str, found: dict[str, dict[str, Any]]) -> NoShards:
    names = [name for name, entry in found.items() if entry["type"] == local.BROKEN_LINK]
    broken = {name: local.broken_link_error(found.pop(name)) for name in names}
    return NoShards(
        f"{redact(url)}: no {_ENDINGS} file there; correct the pattern or the directory",
        _take(filesystem, url, path, found, list(found)),
        broken,
        "" if _is_pattern(url) else openable_url(url),
    )


def _shown(items: list[str]) -> str:
    text = ", ".join(redact(item) if item.strip() else repr(item) for item in items[:_NUM_SHOWN])
    return text + (", ..." if len(items) > _NUM_SHOWN else "") if items else "(empty list)"
