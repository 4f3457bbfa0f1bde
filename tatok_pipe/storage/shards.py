"""From what a user wrote to the list of image shards: braces, globs, list files, directories."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from braceexpand import braceexpand
from fsspec.core import split_protocol

from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage import local
from tatok_pipe.storage.files import NO_SIZE, etag_of, exists, file_entry, missing_place, read_bytes
from tatok_pipe.storage.listing import find_files, glob_files, list_folder
from tatok_pipe.storage.urls import (
    canonical_url,
    file_name,
    is_local,
    name_listed,
    names_filesystem_within,
    open_filesystem,
    openable_url,
    redact,
)

TAR_SUFFIXES = (
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tzst",
    *(f".tar.{end}" for end in ("gz", "bz2", "xz", "zst", "lz4")),
)
# Where files of several kinds are, those of the first: img2dataset puts a Parquet beside each tar.
SHARD_KINDS = (TAR_SUFFIXES, (".zip",), (".parquet",))
SHARD_SUFFIXES = tuple(suffix for kind in SHARD_KINDS for suffix in kind)
_NUM_CHECKS = 32  # concurrent requests where files can only be asked for one by one
_NUM_SHOWN = 3
_EXPECTED = (
    "give .tar files, a glob such as 's3://bucket/train/*.tar', a brace range such as 'train/{000000..000127}.tar', a "
    "directory, or @list.txt"
)
_LIST_SIGN = re.compile(r"::(?![\w:.%]*\])")  # not the one in http://[::1]/


@dataclass(frozen=True, slots=True)
class ShardFile:
    """An image shard, and what its store says of it now."""

    url: str  # to open it with: absolute where local, secrets and all where it has some
    size_bytes: int | None  # None where the server does not tell
    etag: str = ""  # the store's content tag, without quotes; empty where the filesystem has none
    mtime_ns: int = field(default=0, compare=False)  # time of modification on local disk, a hint; 0: unknown


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
    missing = _look_up(shards, unseen, _ask)
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


def find_named(urls: Iterable[str]) -> dict[str, ShardFile | None]:
    """What their stores say of the files at `urls` now; None where there is no file. A folder is listed once, where it
    can be and many of its files are named."""
    opened = {url: openable_url(url) for url in urls}
    files = {url: ShardFile(url, None) for url in opened.values()}
    missing = set(_look_up(files, list(files), _ask_for_file))
    return {url: None if name in missing else files[name] for url, name in opened.items()}


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
    if _is_http(url) or file_name(url).endswith(SHARD_SUFFIXES):
        yield ShardFile(openable_url(url), None), False
    else:
        yield from _expand_directory(url)


def _is_there_as_written(item: str) -> bool:
    """Whether a name with signs that mean something else is the name of a file or directory. Nobody has such names on
    a web server, where they are escaped, and some servers have a page for every name."""
    if _is_http(item) or not ("::" in item or any(sign in item for sign in "*?[{}\\")):
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
        raise _unreachable(error) from error


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


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))  # where '?' begins a query and nothing can be listed


def _is_pattern(url: str) -> bool:
    if not _is_http(url):
        return any(character in url for character in "*?[")
    return any(character in "".join(url.split("/", 3)[3:]) for character in "*[")  # a host may be [::1]


def _match(url: str) -> list[ShardFile]:
    filesystem, path = open_filesystem(url)
    found = _read(lambda: glob_files(filesystem, path, url=url))
    start = path.rpartition("/")[2][:1]

    def is_shown(name: str) -> bool:
        base = name.rpartition("/")[2]
        return not base.startswith((".", "_")) or base.startswith(start)

    names = [name for name in found if is_shown(name)]
    return _listed(filesystem, url, path, found, _shards_among(names) or sorted(names))


def _expand_directory(url: str) -> Iterator[tuple[ShardFile, bool]]:
    filesystem, path = open_filesystem(url)
    found = _read(lambda: find_files(filesystem, path, url=url))
    if list(found) == [path] or not (found or _is_directory(url)):
        yield ShardFile(openable_url(url), None), False  # a shard without suffix, or nothing
        return
    start = len(path.rstrip("/"))
    names = [name for name in found if not any(part[:1] in "._" for part in name[start:].split("/") if part)]
    yield from ((file, True) for file in _listed(filesystem, url, path, found, _shards_among(names)))


def _is_directory(url: str) -> bool:
    try:
        _read(lambda: file_entry(url))
    except IsADirectoryError:
        return True
    return False


def _shards_among(names: Iterable[str]) -> list[str]:
    names = list(names)
    for suffixes in SHARD_KINDS:
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
    files = [
        _shard_file(name if is_here else name_listed(url, path, name), found.pop(name)) for name in names
    ]
    found.clear()
    return files


def _no_shards(filesystem: Any, url: str, path: str, found: dict[str, dict[str, Any]]) -> NoShards:
    names = [name for name, entry in found.items() if entry["type"] == local.BROKEN_LINK]
    broken = {name: local.broken_link_error(found.pop(name)) for name in names}
    return NoShards(
        f"{redact(url)}: no .tar, .zip or .parquet file there; correct the pattern or the directory",
        _take(filesystem, url, path, found, list(found)),
        broken,
        "" if _is_pattern(url) else openable_url(url),
    )


def _shard_file(url: str, entry: dict[str, Any]) -> ShardFile:
    size = entry.get("size")
    return ShardFile(url, None if size is None else int(size), etag_of(entry), entry.get("mtime_ns", 0))


def _look_up(
    shards: dict[str, ShardFile], unseen: Iterable[str], ask: Callable[[str], ShardFile | None]
) -> list[str]:
    """Fill in what the stores say of the `unseen` ones of `shards`; the URLs that do not exist, in order."""
    by_directory: dict[str, list[str]] = {}
    for key in unseen:
        by_directory.setdefault(shards[key].url.rpartition("/")[0], []).append(key)
    missing: set[str] = set()
    alone: list[str] = []
    for directory, keys in by_directory.items():
        entries = _list_directory(directory, shards[keys[0]].url) if len(keys) > _NUM_CHECKS else None
        if entries is None:
            alone += keys
            continue
        for key in keys:
            url = shards[key].url
            entry = entries.pop(url.rpartition("/")[2], None)
            if entry is None:
                missing.add(key)
            else:
                shards[key] = _shard_file(url, entry)
    with ThreadPoolExecutor(_NUM_CHECKS) as pool:
        urls = (shards[key].url for key in alone)
        found = map_ahead(pool, ask, urls, max_items=4 * _NUM_CHECKS)
        for key, file in zip(alone, found, strict=True):
            if file is None:
                missing.add(key)
            else:
                shards[key] = file
    return [file.url for key, file in shards.items() if key in missing] if missing else []


def _list_directory(directory: str, url: str) -> dict[str, dict[str, Any]] | None:
    """The entries of the files in the directory of `url`, by name; None where it cannot be listed."""
    if _is_http(directory):
        return None
    filesystem, path = open_filesystem(url)
    try:
        entries = list_folder(filesystem, path.rpartition("/")[0], url=url)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        return None  # a store that lets one read objects but not list them
    except OSError as error:
        raise _unreachable(error) from error
    return {entry["name"].rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}


def _ask(url: str) -> ShardFile | None:
    try:
        entry = _read(lambda: file_entry(url))
    except IsADirectoryError as error:
        raise UserError(f"{error}; a folder of shards has a name without .tar") from error
    if entry and entry.get("size") is None:
        raise UserError(f"{redact(url)}: {NO_SIZE}")
    return _shard_file(url, entry) if entry else None


def _ask_for_file(url: str) -> ShardFile | None:
    """As `_ask`; a directory is no file."""
    try:
        return _ask(url)
    except UserError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        raise


def _read(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return action()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except IsADirectoryError:
        raise
    except OSError as error:
        raise _unreachable(error) from error


def _unreachable(error: OSError) -> UserError:
    return UserError(f"cannot list image shards: {error}")


def _shown(items: list[str]) -> str:
    text = ", ".join(redact(item) if item.strip() else repr(item) for item in items[:_NUM_SHOWN])
    return text + (", ..." if len(items) > _NUM_SHOWN else "") if items else "(empty list)"
