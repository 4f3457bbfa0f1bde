"""From what a user wrote to the list of image shards: braces, globs, list files, directories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand

from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage import retry
from tatok_pipe.storage.files import etag_of, file_entry, read_bytes
from tatok_pipe.storage.urls import canonical_url, is_local, open_filesystem, openable_url, redact

SHARD_SUFFIXES = (".tar", ".parquet")  # where both are, the first: img2dataset puts a Parquet beside each tar
_NUM_CHECKS = 32  # concurrent requests where files can only be asked for one by one
_NUM_SHOWN = 3
_EXPECTED = (
    "give .tar files, a glob such as 's3://bucket/train/*.tar', a brace range such as 'train/{000000..000127}.tar', a "
    "directory, or @list.txt"
)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """An image shard, and what its store says of it now."""

    url: str  # to open it with: absolute where local, secrets and all where it has some
    size_bytes: int | None  # None where the server does not tell
    etag: str = ""  # the store's content tag, without quotes; empty where the filesystem has none


def expand_shards(spec: str | Sequence[str]) -> list[ShardFile]:
    """The image shards that `spec` means, each once, in the order given; local ones as absolute paths.

    An item is a URL or path, with `{000..127}` or `{a,b}` expanded as a shell does, one with `*`, `?` or
    `[a-z]` (sorted), a directory or the prefix that stands for one (every shard below it, sorted), or
    `@list.txt`: a file, local or remote, with one such item a line, where `#` begins a comment.

    Where `.tar` files are in a directory or match a pattern, they are the shards, else the `.parquet` files;
    of a pattern that matches neither, all that it matches. Names that begin with `.` or `_` do not count,
    unless they are given or the pattern begins so. Sizes and ETags come from the listings; a remote directory
    is listed once, however many shards are named in it. Where nothing can be listed, every shard is asked for
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
            key = canonical_url(file.url)
            if key == file.url:
                key = file.url  # one string in memory, not two
            if key not in shards:
                shards[key] = file
                if not is_listed:
                    unseen[key] = None
            elif is_listed and key in unseen:
                shards[key] = ShardFile(shards[key].url, file.size_bytes, file.etag)
                del unseen[key]
    missing = _look_up(shards, unseen)
    if missing:
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
    if item.startswith("@"):
        for line in _lines(item[1:]):
            yield from _expand(line)
        return
    for url in _expand_braces(item):
        if not url.strip():  # it would mean the working directory
            raise UserError(
                f"{redact(item)}: one of the words in its braces is empty; write each as a whole name"
            )
        if _is_pattern(url):
            yield from ((file, True) for file in _match(url))
        elif _is_http(url) or url.endswith(SHARD_SUFFIXES):
            yield ShardFile(openable_url(url), None), False
        else:
            yield from _expand_directory(url)


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
    found = _read(lambda: retry.call(lambda: filesystem.glob(path, detail=True), url=url))
    start = path.rpartition("/")[2][:1]

    def is_shown(name: str) -> bool:
        base = name.rpartition("/")[2]
        return not base.startswith((".", "_")) or base.startswith(start)

    names = [name for name, entry in found.items() if entry["type"] == "file" and is_shown(name)]
    return _listed(filesystem, url, found, _shards_among(names) or sorted(names))


def _expand_directory(url: str) -> Iterator[tuple[ShardFile, bool]]:
    filesystem, path = open_filesystem(url)
    found = _read(lambda: retry.call(lambda: filesystem.find(path, detail=True), url=url))
    if list(found) == [path] or not (found or filesystem.isdir(path)):
        yield ShardFile(openable_url(url), None), False  # a shard without suffix, or nothing
        return
    start = len(path.rstrip("/"))
    names = [name for name in found if not any(part[:1] in "._" for part in name[start:].split("/") if part)]
    yield from ((file, True) for file in _listed(filesystem, url, found, _shards_among(names)))


def _shards_among(names: Iterable[str]) -> list[str]:
    names = list(names)
    for suffix in SHARD_SUFFIXES:
        if chosen := [name for name in names if name.endswith(suffix)]:
            return sorted(chosen)
    return []


def _listed(filesystem: Any, url: str, found: dict[str, dict[str, Any]], names: list[str]) -> list[ShardFile]:
    """The files of `names`, with what `found` says of them; `found` is emptied on the way."""
    if not names:
        raise UserError(
            f"{redact(url)}: no {' or '.join(SHARD_SUFFIXES)} file there; correct the pattern or the directory"
        )
    spell = str if is_local(filesystem) else filesystem.unstrip_protocol
    # An entry takes about 1 KB, a ShardFile a quarter of it: never both for all of a million shards.
    files = [_shard_file(spell(name), found.pop(name)) for name in names]
    found.clear()
    return files


def _shard_file(url: str, entry: dict[str, Any]) -> ShardFile:
    size = entry.get("size")
    return ShardFile(url, None if size is None else int(size), etag_of(entry))


def _look_up(shards: dict[str, ShardFile], unseen: Iterable[str]) -> list[str]:
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
        found = map_ahead(pool, _ask, urls, max_items=4 * _NUM_CHECKS)
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
        entries = retry.call(lambda: filesystem.ls(path.rpartition("/")[0], detail=True), url=url)
    except FileNotFoundError:
        return {}
    except PermissionError:
        return None  # a store that lets one read objects but not list them
    return {entry["name"].rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}


def _ask(url: str) -> ShardFile | None:
    entry = _read(lambda: file_entry(url))
    return _shard_file(url, entry) if entry else None


def _read(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return action()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(
            f"cannot list image shards: {error}; check the address and the credentials"
        ) from error


def _shown(items: list[str]) -> str:
    text = ", ".join(redact(item) if item.strip() else repr(item) for item in items[:_NUM_SHOWN])
    return text + (", ..." if len(items) > _NUM_SHOWN else "") if items else "(empty list)"
