"""What lies in data/ of a token dataset: its token shards, from one listing of the store."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.tokens.layout import DATA_DIRECTORY, SUFFIX

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

_CHUNK_ROWS = 1 << 16

LISTING_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the token shard
        pa.field("size_bytes", pa.int64(), nullable=False),  # of its data file
        pa.field("version", pa.string(), nullable=False),  # ETag or time of the data file, where listed
    ]
)


def list_data(url: str) -> pa.Table:
    """The token shards in data/ of the dataset at `url`, LISTING_SCHEMA, from one listing."""
    chunks = Chunks(LISTING_SCHEMA)
    for file in storage.scan_files(storage.join(url, DATA_DIRECTORY)):
        if file.name.endswith(SUFFIX) and not file.name.startswith((".", "_")):
            chunks.add((file.name.removesuffix(SUFFIX), file.size_bytes, file.version))
    return chunks.table()


def is_current(rows: pa.Table, listing: pa.Table) -> bool:
    """Whether all data files of `rows` are listed, with the size and version that the rows have."""
    place = pc.index_in(rows["name"], value_set=listing["name"])
    if place.null_count:
        return False
    listed = listing.select(["size_bytes", "version"]).take(place)
    return all(
        pc.all(pc.equal(rows[column], listed[column]), min_count=0).as_py() for column in listed.column_names
    )


def without(listing: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    return listing.filter(pc.invert(pc.is_in(listing["name"], value_set=names)))


class Chunks:
    """Collects rows as columns of Arrow, which take a tenth of what Python objects take."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == _CHUNK_ROWS:
            self._flush()

    def table(self) -> pa.Table:
        """All rows so far, by name."""
        self._flush()
        return pa.Table.from_batches(self._batches, self._schema).sort_by("name").combine_chunks()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)
            ]
            self._batches.append(pa.record_batch(arrays, schema=self._schema))
            self._rows = []
