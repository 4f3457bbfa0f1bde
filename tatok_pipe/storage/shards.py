"""From what a user wrote to the list of image shards: braces, globs, list files, directories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from braceexpand import braceexpand

from tatok_pipe.errors import UserError
from tatok_pipe.storage import retry
from tatok_pipe.storage.files import read_bytes
from tatok_pipe.storage.urls import canonical_url, is_local, open_filesystem, redact

SHARD_SUFFIX = ".tar"
_NUM_CHECKS = 16  # concurrent requests where names can only be asked for one by one
_NUM_SHOWN = 3


def expand_shards(spec: str | Sequence[str]) -> list[str]:
    """The image shards that `spec` means, each once, in the order given; local ones as absolute paths.

    An item is a URL or path, with `{000..127}` or `{a,b}` expanded as a shell does, one with `*`, `?` or
    `[a-z]` (sorted), a directory (every `.tar` below it, sorted), or `@list.txt`: a file, local or remote,
    with one such item a line, where `#` begins a comment. A remote directory is listed once, however many
    shards are named in it. Raises UserError for a name that does not exist, and where nothing is left.
    """
    items = [spec] if isinstance(spec, str) else list(spec)
    shards: dict[str, _Candidate] = {}
    for item in items:
        for candidate in _expand(item):
            shards.setdefault(canonical_url(candidate.url), candidate)
    missing = _missing([candidate.url for candidate in shards.values() if not candidate.listed])
    if missing:
        shown = ", ".join(redact(url) for url in missing[:_NUM_SHOWN])
        more = f" and {len(missing) - _NUM_SHOWN} more" if len(missing) > _NUM_SHOWN else ""
        raise UserError(
            f"{_shown(items)}: {len(missing)} of {len(shards)} image shards do not exist: {shown}{more}; "
            "correct the name or the brace range"
        )
    if not shards:
        raise UserError(
            f"{_shown(items)}: no image shard; give .tar files, a glob such as 's3://bucket/train/*.tar', a "
            "brace range such as 'train/{000000..000127}.tar', a directory, or @list.txt"
        )
    return [candidate.url for candidate in shards.values()]


@dataclass(frozen=True)
class _Candidate:
    url: str
    listed: bool  # came out of a listing, so it exists


def _expand(item: str) -> list[_Candidate]:
    item = item.strip()
    if item.startswith("@"):
        return [candidate for line in _lines(item[1:]) for candidate in _expand(line)]
    try:
        urls = list(braceexpand(item))
    except ValueError as error:
        raise UserError(f"{redact(item)}: unbalanced braces; write a range as {{000000..000127}}") from error
    return [candidate for url in urls for candidate in _expand_one(url)]


def _lines(list_url: str) -> list[str]:
    try:
        text = read_bytes(list_url).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"@{redact(list_url)}: cannot read the list of shards: {error}") from error
    # A '#' inside a word belongs to the URL; a comment follows a space or begins the line.
    lines = ((" " + line).partition(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _expand_one(url: str) -> list[_Candidate]:
    filesystem, path = open_filesystem(url)
    if any(character in path for character in ("*[" if _is_http(path) else "*?[")):
        return _listed(filesystem, url, _read(lambda: filesystem.glob(path), url))
    named = [_Candidate(_spelled(filesystem, path), listed=False)]
    if path.endswith(SHARD_SUFFIX) or _is_http(path):
        return named
    below = [str(name) for name in _read(lambda: filesystem.find(path), url)]
    if below == [path] or not (below or filesystem.isdir(path)):
        return named  # a shard without suffix, or a name that does not exist
    return _listed(filesystem, url, [name for name in below if name.endswith(SHARD_SUFFIX)])


def _listed(filesystem: Any, url: str, paths: list[str]) -> list[_Candidate]:
    if not paths:
        raise UserError(f"{redact(url)}: no {SHARD_SUFFIX} file there; correct the pattern or the directory")
    return [_Candidate(_spelled(filesystem, path), listed=True) for path in sorted(paths)]


def _spelled(filesystem: Any, path: str) -> str:
    return path if is_local(filesystem) else filesystem.unstrip_protocol(path)


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))  # where '?' begins a query and nothing can be listed


def _missing(urls: list[str]) -> list[str]:
    by_directory: dict[str, list[str]] = {}
    for url in urls:
        by_directory.setdefault(url.rpartition("/")[0], []).append(url)
    return [url for group in by_directory.values() for url in _missing_of_directory(group)]


def _missing_of_directory(urls: list[str]) -> list[str]:
    """Those of `urls`, all in one directory, that do not exist: one listing for many, a question for one."""
    filesystem, path = open_filesystem(urls[0])
    if len(urls) > 1 and not _is_http(path):
        try:
            directory = path.rpartition("/")[0]
            names = set(retry.call(lambda: filesystem.ls(directory, detail=False), url=urls[0]))
            return [url for url in urls if open_filesystem(url)[1] not in names]
        except FileNotFoundError:
            return urls
        except PermissionError:
            pass  # a store that lets one read objects but not list them
    with ThreadPoolExecutor(_NUM_CHECKS) as pool:
        present = pool.map(lambda url: _read(lambda: filesystem.exists(open_filesystem(url)[1]), url), urls)
        return [url for url, is_present in zip(urls, present, strict=True) if not is_present]


def _read(action: Callable[[], Any], url: str) -> Any:
    try:
        return retry.call(action, url=url)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"cannot list image shards: {error}; check the address and the credentials"
        ) from error


def _shown(items: list[str]) -> str:
    text = ", ".join(redact(item) for item in items[:_NUM_SHOWN])
    return text + (", ..." if len(items) > _NUM_SHOWN else "") if items else "(empty list)"
