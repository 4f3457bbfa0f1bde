"""What the stores say of files by their names: a folder of them listed once, or each asked for by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage.files import NO_SIZE, etag_of, file_entry
from tatok_pipe.storage.listing import list_folder
from tatok_pipe.storage.urls import is_web_url, open_filesystem, openable_url, redact

_NUM_CHECKS = 32  # concurrent requests where files can only be asked for one by one


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file that is meant, such as an image shard, and what its store says of it now."""

    url: str  # to open it with: absolute where local, secrets and all where it has some
    size_bytes: int | None  # None where the server does not tell
    etag: str = ""  # the store's content tag, without quotes; empty where the filesystem has none
    mtime_ns: int = field(default=0, compare=False)  # time of modification on local disk, a hint; 0: unknown


def find_named(urls: Iterable[str]) -> dict[str, ShardFile | None]:
    """What their stores say of the files at `urls` now; None where there is no file. A folder is listed once, where it
    can be and many of its files are named."""
    opened = {url: openable_url(url) for url in urls}
    files = {url: ShardFile(url, None) for url in opened.values()}
    missing = set(look_up(files, list(files), _ask_for_file))
    return {url: None if name in missing else files[name] for url, name in opened.items()}


def shard_file(url: str, entry: dict[str, Any]) -> ShardFile:
    """The file that a listing has as `entry`."""
    size = entry.get("size")
    return ShardFile(url, None if size is None else int(size), etag_of(entry), entry.get("mtime_ns", 0))


def look_up(
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
                shards[key] = shard_file(url, entry)
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
    if is_web_url(directory):
        return None
    filesystem, path = open_filesystem(url)
    try:
        entries = list_folder(filesystem, path.rpartition("/")[0], url=url)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        return None  # a store that lets one read objects but not list them
    except OSError as error:
        raise unreachable(error) from error
    return {entry["name"].rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}


def ask(url: str) -> ShardFile | None:
    """What its store says of the file at `url`; None where there is none. Raises UserError for a folder and where the
    store does not say how large the file is."""
    try:
        entry = read_entries(lambda: file_entry(url))
    except IsADirectoryError as error:
        raise UserError(f"{error}; a folder of shards has a name without .tar") from error
    if entry and entry.get("size") is None:
        raise UserError(f"{redact(url)}: {NO_SIZE}")
    return shard_file(url, entry) if entry else None


def _ask_for_file(url: str) -> ShardFile | None:
    """As `ask`; a directory is no file."""
    try:
        return ask(url)
    except UserError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            return None
        raise


def read_entries(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `action` finds, nothing where nothing is there. Raises UserError where the store cannot be asked."""
    try:
        return action()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except IsADirectoryError:
        raise
    except OSError as error:
        raise unreachable(error) from error


def unreachable(error: OSError) -> UserError:
    """What a user is told where a store cannot be asked."""
    return UserError(f"cannot list image shards: {error}")
