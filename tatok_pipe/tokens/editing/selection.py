"""Which rows of a token dataset somebody wants removed: by key, or by what is in their columns. Changes nothing.

An image goes with all its crops. What was quarantined under a key goes with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tatok_pipe import storage
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.format import damage_told, read_quarantine
from tatok_pipe.tokens.layout import QUARANTINE_DIRECTORY, SUFFIX, data_url, quarantine_url
from tatok_pipe.tokens.removed import Removed, hash_key
from tatok_pipe.tokens.row_condition import RowCondition
from tatok_pipe.tokens.shard_file import open_shard

_NUM_READERS = 8


@dataclass(frozen=True)
class Request:
    """What is to be removed. A line is a key, all crops of it in all token shards, or `shard/key`."""

    lines: frozenset[str] = frozenset()
    where: RowCondition | None = None

    def __bool__(self) -> bool:
        return bool(self.lines) or self.where is not None

    @property
    def digest(self) -> str:
        """The same for the same request, 64 hex digits, and telling nothing of it."""
        value = [sorted(hash_key(line).hex() for line in self.lines), self.where.text if self.where else ""]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@dataclass(frozen=True)
class Match:
    """What of one token shard is to go: what was asked for now, and what was to go already."""

    name: str
    num_rows: int = 0
    num_quarantined: int = 0
    num_pending: int = 0  # of both together, what an edit that was cut short has left
    hashes: frozenset[bytes] = field(default=frozenset(), repr=False)  # as `Removed` knows them
    lines: frozenset[str] = field(default=frozenset(), repr=False)  # of the request that were found


class Selector:
    """Holds the token shards `names` of the dataset at `url` against a request and what was removed before."""

    def __init__(self, url: str, names: Sequence[str], request: Request, removed: Removed) -> None:
        self._url = url
        self._names = names
        self._removed = removed
        self._where = request.where
        known = frozenset(names)
        self._everywhere: set[str] = set()
        self._in_shard: dict[str, dict[str, str]] = {}  # by token shard: key -> line
        for line in request.lines:
            shard, sign, key = line.partition("/")
            if sign and key and shard in known:
                self._in_shard.setdefault(shard, {})[key] = line
            else:
                self._everywhere.add(line)

    def matches(self) -> Iterator[Match]:
        """Of each token shard, in order. Raises UserError for one that cannot be read."""
        quarantine = storage.list_files(storage.join(self._url, QUARANTINE_DIRECTORY))

        def match(name: str) -> Match:
            return self._match(name, has_quarantine=name + SUFFIX in quarantine)

        with ThreadPoolExecutor(_NUM_READERS, "select") as pool:
            yield from map_ahead(pool, match, self._names, max_items=2 * _NUM_READERS)

    def is_removed(self, line: str) -> bool:
        """Whether a line of the request was removed before."""
        return hash_key(line) in self._removed.hashes

    def _match(self, name: str, *, has_quarantine: bool) -> Match:
        keys, by_where = self._read(name)
        bad = [row.key for row in read_quarantine(quarantine_url(self._url, name))] if has_quarantine else []
        pending = {key for key in {*keys, *bad} if self._removed.has(name, key)}
        wanted = self._in_shard.get(name, {})
        here, everywhere = wanted.keys() & {*keys, *bad}, self._everywhere & {*keys, *bad}
        gone = pending | here | everywhere | by_where
        return Match(
            name,
            num_rows=_count(keys, gone),
            num_quarantined=_count(bad, gone),
            num_pending=_count(keys, pending) + _count(bad, pending),
            hashes=frozenset(hash_key(key) for key in everywhere)
            | frozenset(hash_key(key, shard=name) for key in here | by_where - pending - everywhere),
            lines=frozenset(everywhere) | frozenset(wanted[key] for key in here),
        )

    def _read(self, name: str) -> tuple[list[str], set[str]]:
        """All keys of the token shard, and those that the condition is true of."""
        url = data_url(self._url, name)
        columns = dict.fromkeys(["key", *(self._where.columns if self._where else ())])
        keys: list[str] = []
        found: set[str] = set()
        with damage_told(url), open_shard(url) as file:
            for group in range(file.num_row_groups):
                table = file.read([group], list(columns))
                names = table["key"].to_pylist()
                keys += names
                if self._where is not None:
                    found.update(names[row] for row in self._where.rows(name, table).tolist())
        return keys, found


def _count(keys: Iterable[str], gone: set[str]) -> int:
    return sum(key in gone for key in keys)
