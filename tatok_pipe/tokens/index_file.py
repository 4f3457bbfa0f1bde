"""`_index.parquet` as a file: its columns, and the reading and writing of it. When it may be believed is told in
index.py."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokens.format import empty_statistics
from tatok_pipe.tokens.layout import INDEX_FILE
from tatok_pipe.tokens.listing import LISTING_SCHEMA
from tatok_pipe.tokens.owed import Owed, owed_from_json
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics

logger = logging.getLogger(__name__)

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

VERSION = 2
_VERSION_KEY, _SPEC_KEY, _STATISTICS_KEY = b"tatok.index_version", b"tatok.spec", b"tatok.statistics"
_OWED_KEY = b"tatok.owed"
_MAX_OWED = 10_000  # more are counted, not remembered one by one

INDEX_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        pa.field("source_url", pa.string(), nullable=False),
        pa.field("source_size_bytes", pa.int64(), nullable=False),
        pa.field("source_etag", pa.string(), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
        # A hint, known to nobody but this file: while a local image shard has this time it need not be hashed. 0: none.
        pa.field("source_mtime_ns", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_quarantined", pa.int64(), nullable=False),
        pa.field("content_digest", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Index:
    """The committed shards of a dataset, and their statistics."""

    table: pa.Table  # INDEX_SCHEMA, a row per committed shard, by name
    statistics: ShardStatistics  # of exactly these shards
    num_footers_read: int = 0  # by the refresh that made it
    owed: tuple[Owed, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)  # name of a data file that is no token shard -> why

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def names(self) -> list[str]:
        """The names of the committed token shards, sorted."""
        return self.table["name"].to_pylist()

    def total(self, column: str) -> int:
        """The sum of a column of numbers."""
        return pc.sum(self.table[column]).as_py() or 0


def empty_index(spec: TokenSpec) -> Index:
    return Index(INDEX_SCHEMA.empty_table(), empty_statistics(spec))


def load_index(url: str, spec: TokenSpec) -> Index | None:
    """What `_index.parquet` says, true or not; empty where there is none, None where it is of no use.

    That is where it is corrupt, or of another program version or spec.
    """
    try:
        return read_index(url, spec)
    except ValueError as error:
        shown = storage.redact(storage.join(url, INDEX_FILE))
        logger.warning("%s: not used, and written anew: %s", shown, error)
        return None


def read_index(url: str, spec: TokenSpec) -> Index:
    """As `load_index`; raises ValueError with the reason, of one line, where the file is of no use."""
    try:
        data = storage.read_bytes(storage.join(url, INDEX_FILE))
    except FileNotFoundError:
        return empty_index(spec)
    try:
        table = pq.read_table(pa.BufferReader(data))
        values = table.schema.metadata or {}
        _expect(values.get(_VERSION_KEY) == str(VERSION).encode(), "another index version")
        begun = TokenSpec.from_json(json.loads(values[_SPEC_KEY]))
        _expect(not begun.differences(spec), "other tokenizer settings")
        table = table.replace_schema_metadata()
        _expect(table.schema.equals(INDEX_SCHEMA), "other columns")
        index = Index(
            table,
            ShardStatistics.from_json(json.loads(values[_STATISTICS_KEY])),
            owed=tuple(owed_from_json(each) for each in json.loads(values[_OWED_KEY])),
        )
        _expect(pc.count_distinct(table["name"]).as_py() == len(index), "a shard twice")
        _expect(index.statistics.shape == empty_index(spec).statistics.shape, "other vocabularies")
        for column, counted in (
            ("num_rows", index.statistics.num_images),
            ("num_tokens", index.statistics.num_tokens),
            ("num_quarantined", index.statistics.num_quarantined),
            ("source_size_bytes", index.statistics.bytes_in),
        ):
            _expect(index.total(column) == counted, f"{column} that do not add up")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return index


def save_index(url: str, spec: TokenSpec, index: Index) -> None:
    """Replace `_index.parquet` in one step."""
    values = {
        _VERSION_KEY: str(VERSION),
        _SPEC_KEY: json.dumps(spec.to_json(), sort_keys=True),
        _STATISTICS_KEY: json.dumps(index.statistics.to_json(), sort_keys=True),
        _OWED_KEY: json.dumps([dataclasses.asdict(each) for each in index.owed[:_MAX_OWED]], sort_keys=True),
    }
    with temporary_folder() as folder:
        path = os.path.join(folder, INDEX_FILE)
        pq.write_table(index.table.replace_schema_metadata(values), path, compression="zstd")
        storage.publish_file(path, storage.join(url, INDEX_FILE), exclusive=False)


def _expect(is_so: bool, found: str) -> None:
    if not is_so:
        raise ValueError(f"has {found}")
