"""What was removed from a token dataset on purpose, and must not come back: `_removed.parquet`.

It holds the SHA-256 of each key, or of `shard/key` where one token shard alone is meant, and not the keys. (Who guesses
a key can tell whether it was removed.) Whoever makes token shards leaves out the samples that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokens.layout import REMOVED_FILE

VERSION = 1
_VERSION_KEY, _REQUESTS_KEY = b"tatok.removed_version", b"tatok.requests"
_SCHEMA = pa.schema([pa.field("sha256", pa.binary(32), nullable=False)])


class BrokenRemoved(UserError):
    """`_removed.parquet` is there, and does not say what it should."""

    def __init__(self, url: str, error: Exception) -> None:
        self.reason = f"is broken ({' '.join(str(error).split())})"
        self.advice = (
            "put back what was there, as nothing else tells which rows were removed; without the file tokenize_corpus "
            "would make them again"
        )
        super().__init__(f"{storage.redact(storage.join(url, REMOVED_FILE))}: {self.reason}; {self.advice}")


@dataclass(frozen=True)
class Removed:
    """The samples that a dataset has no rows of, because somebody wanted it so."""

    hashes: frozenset[bytes] = field(default=frozenset(), repr=False)
    requests: tuple[str, ...] = ()  # digests of what was asked for, in order

    def has(self, shard: str, key: str) -> bool:
        """Whether the samples with this key in the token shard are removed, all crops and copies of them."""
        if not self.hashes:
            return False
        return hash_key(key) in self.hashes or hash_key(key, shard=shard) in self.hashes

    def find(self, shard: str, keys: Sequence[str]) -> np.ndarray:
        """(len(keys),) bool: `has` of each."""
        return np.fromiter((self.has(shard, key) for key in keys), np.bool_, len(keys))

    def add(self, hashes: Iterable[bytes], requests: Collection[str]) -> Removed:
        """With more, and with the requests that are not among those there were."""
        new = [request for request in requests if request not in self.requests]
        return Removed(self.hashes.union(hashes), (*self.requests, *new))


def hash_key(key: str, *, shard: str = "") -> bytes:
    """How `Removed` knows a key, wherever it is, or in one token shard."""
    # A key that a user gives may be no text, which no key of a row is.
    return hashlib.sha256((f"{shard}/{key}" if shard else key).encode(errors="surrogatepass")).digest()


def read_removed(url: str) -> Removed:
    """What was removed from the dataset at `url`; nothing where there is no such file. Raises BrokenRemoved."""
    try:
        data = storage.read_bytes(storage.join(url, REMOVED_FILE))
    except FileNotFoundError:
        return Removed()
    try:
        table = pq.read_table(pa.BufferReader(data))
        values = table.schema.metadata or {}
        version = values.get(_VERSION_KEY, b"missing").decode()
        if version != str(VERSION):
            raise ValueError(f"version {version}, this program reads {VERSION}")
        if not table.schema.remove_metadata().equals(_SCHEMA):
            raise ValueError("other columns")
        return Removed(
            frozenset(table["sha256"].to_pylist()), tuple(map(str, json.loads(values[_REQUESTS_KEY])))
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenRemoved(url, error) from error


def write_removed(url: str, removed: Removed) -> None:
    """Replace `_removed.parquet` in one step; the same for equal content."""
    metadata = {_VERSION_KEY: str(VERSION), _REQUESTS_KEY: json.dumps(removed.requests)}
    table = pa.table([pa.array(sorted(removed.hashes), _SCHEMA.field(0).type)], schema=_SCHEMA)
    with temporary_folder() as folder:
        path = os.path.join(folder, REMOVED_FILE)
        pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
        storage.publish_file(path, storage.join(url, REMOVED_FILE), exclusive=False)
