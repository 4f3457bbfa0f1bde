"""`_index.parquet`: what the footers of a token dataset say, so that nobody has to read all of them again.

A cache. The listing of data/ is the truth: a row counts only while its data file is there with the size and
version that the row names. The merged statistics stand in the same file as the rows that they count, and the
file is replaced in one step, so that of two jobs that write it at once either one leaves a right one.

What it counted once and cannot find any more, though nobody discarded it, is *owed*: it is remembered here until a
token shard of that name is there again, so that a loss is not forgotten by counting afresh.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokens.format import (
    ShardMetadata,
    ShardSource,
    check_settings,
    empty_statistics,
    read_shard_metadata,
)
from tatok_pipe.tokens.layout import DATA_DIRECTORY, INDEX_FILE, SUFFIX, data_url
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics

logger = logging.getLogger(__name__)

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

VERSION = 2
NUM_READERS = 32
SAVE_EVERY_S = 300.0  # what a killed refresh has to read again
_CHUNK_ROWS = 1 << 16
_VERSION_KEY, _SPEC_KEY, _STATISTICS_KEY = b"tatok.index_version", b"tatok.spec", b"tatok.statistics"
_OWED_KEY = b"tatok.owed"
_MAX_OWED = 10_000  # more are counted, not remembered one by one

LISTING_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the token shard
        pa.field("size_bytes", pa.int64(), nullable=False),  # of its data file
        pa.field("version", pa.string(), nullable=False),  # ETag or time of the data file, where listed
    ]
)
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

Progress = Callable[[int, int], None]  # (footers read, footers to read)


@dataclass(frozen=True)
class Owed:
    """A token shard that was counted, and is not there any more, or has other rows now."""

    name: str
    source: ShardSource
    num_rows: int
    content_digest: str  # of the rows that it had; empty once it was seen to be gone


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


def refresh_index(
    url: str,
    spec: TokenSpec,
    *,
    known: Index | None = None,
    on_progress: Progress | None = None,
    save: bool = True,
    with_broken: bool = False,
) -> Index:
    """The index of the dataset at `url` as its data/ is now; reads only the footers that are not in it yet.

    One listing, then 32 footers at a time, each merged as it comes. `known` is an earlier answer, to be gone
    on from instead of the file. `on_progress` is called after every footer, in this thread. With `save`,
    `_index.parquet` is replaced where something is new, every five minutes on the way too. Where shards that
    it counts are gone or were replaced, all footers are read again, because their part of the sums is not
    known any more (`forget_shards` takes it out before they go). Call it as often as you like, and from
    several jobs. Raises RefusedError for a shard that was made with another spec, UserError for a file that
    is no token shard; `with_broken` such files are left out and named in the answer.
    """
    listing = list_data(url)
    base = load_index(url, spec) if known is None else known
    owed: tuple[Owed, ...] = base.owed if base is not None else ()
    times: dict[str, tuple[ShardSource, int]] = {}
    if base is not None and not _is_current(base.table, listing):
        logger.info("%s: shards that the index counts are gone or were replaced", storage.redact(url))
        owed = (*owed, *_owed_rows(base.table, listing))
        times = {
            row["name"]: (source_of(row), row["source_mtime_ns"])
            for row in base.table.filter(pc.not_equal(base.table["source_mtime_ns"], 0)).to_pylist()
        }
        base = None
    if base is None:
        logger.info("%s: reading the footers of all %d shards", storage.redact(url), listing.num_rows)
    builder = _Builder(base or _empty_index(spec), owed, times)
    new = _without(listing, builder.known.table["name"])
    del listing
    saved_at = time.monotonic()
    for file, footer in _read_footers(url, spec, new):
        if isinstance(footer, ShardMetadata):
            builder.add(file, footer)
        elif with_broken and not isinstance(footer, RefusedError):
            builder.broken[file["name"]] = " ".join(str(footer).split())
        else:
            raise footer
        if on_progress is not None:
            on_progress(builder.num_read, new.num_rows)
        if save and time.monotonic() - saved_at > SAVE_EVERY_S:
            save_index(url, spec, builder.build())
            saved_at = time.monotonic()
    index = builder.build()
    if save and (builder.num_read or base is None or index.owed != base.owed):
        save_index(url, spec, index)
    return index


def forget_shards(url: str, spec: TokenSpec, names: Collection[str]) -> None:
    """Take shards out of the saved index whose data files are about to be removed; they are still there now.

    Their footers are read once more and subtracted, so that the next refresh need not read all others. Where
    that cannot be done exactly, nothing is, and the next refresh reads all footers.
    """
    index = load_index(url, spec)
    if index is None:
        return
    is_named = pc.is_in(index.table["name"], value_set=pa.array(names, pa.string()))
    named = index.table.filter(is_named)
    if not named.num_rows or not _is_current(named, list_data(url)):
        return
    statistics = empty_statistics(spec)
    statistics.merge(index.statistics)
    num_read = 0
    for _, footer in _read_footers(url, spec, named.select(LISTING_SCHEMA.names)):
        if not isinstance(footer, ShardMetadata):
            return
        _subtract(statistics, footer.statistics)
        num_read += 1
    if num_read == named.num_rows:
        save_index(url, spec, Index(index.table.filter(pc.invert(is_named)), statistics, owed=index.owed))


def forget_sums(url: str, spec: TokenSpec, names: Collection[str]) -> None:
    """Have the next refresh read all footers, because sums of the index may be wrong; `names` are about to be removed.

    What is owed stays so, and so become these shards, until they are there again.
    """
    index = load_index(url, spec)
    if index is None:
        storage.remove(storage.join(url, INDEX_FILE))
        return
    listing = list_data(url)
    listing = listing.filter(pc.invert(pc.is_in(listing["name"], value_set=pa.array(names, pa.string()))))
    owed = _settle((*index.owed, *_owed_rows(index.table, listing)), listing["name"])
    save_index(url, spec, replace(_empty_index(spec), owed=owed))


def list_data(url: str) -> pa.Table:
    """The token shards in data/ of the dataset at `url`, LISTING_SCHEMA, from one listing."""
    chunks = _Chunks(LISTING_SCHEMA)
    for file in storage.scan_files(storage.join(url, DATA_DIRECTORY)):
        if file.name.endswith(SUFFIX) and not file.name.startswith((".", "_")):
            chunks.add((file.name.removesuffix(SUFFIX), file.size_bytes, file.version))
    return chunks.table()


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
        return _empty_index(spec)
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
        _expect(index.statistics.shape == _empty_index(spec).statistics.shape, "other vocabularies")
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


def read_footer(url: str, name: str, spec: TokenSpec) -> ShardMetadata:
    """What the token shard `name` of the dataset at `url` tells about itself.

    Raises RefusedError where it was made with another spec than `spec`, FileNotFoundError where there is
    none, UserError where it is no token shard.
    """
    footer = read_shard_metadata(data_url(url, name))
    check_settings(footer, spec, data_url(url, name))
    return footer


class _Chunks:
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


class _Builder:
    def __init__(
        self, known: Index, owed: tuple[Owed, ...], times: dict[str, tuple[ShardSource, int]]
    ) -> None:
        self.known = known
        self.broken: dict[str, str] = {}
        self._owed = owed
        self._times = times  # by name: source and its time, as the index had them that is not gone on from
        self.num_read = 0
        self._rows = _Chunks(INDEX_SCHEMA)
        self._statistics = ShardStatistics.from_json(known.statistics.to_json())

    def add(self, file: dict[str, Any], footer: ShardMetadata) -> None:
        self.num_read += 1
        source, time_ns = self._times.get(file["name"], (None, 0))
        self._statistics.merge(footer.statistics)
        self._rows.add(
            (
                *(file[name] for name in LISTING_SCHEMA.names),
                footer.source.url,
                footer.source.size_bytes,
                footer.source.etag,
                footer.source.sha256,
                time_ns if source == footer.source else 0,
                footer.num_rows,
                footer.statistics.num_tokens,
                footer.statistics.num_quarantined,
                footer.content_digest,
            )
        )

    def build(self) -> Index:
        table = self.known.table
        if self.num_read:
            table = pa.concat_tables([table, self._rows.table()]).sort_by("name").combine_chunks()
        names = pa.array([*table["name"].to_pylist(), *self.broken], pa.string()) if self._owed else None
        owed = _settle(self._owed, names, table)
        return Index(table, self._statistics, self.num_read, owed, self.broken)


def _empty_index(spec: TokenSpec) -> Index:
    return Index(INDEX_SCHEMA.empty_table(), empty_statistics(spec))


def _is_current(rows: pa.Table, listing: pa.Table) -> bool:
    """Whether all data files of `rows` are listed, with the size and version that the rows have."""
    place = pc.index_in(rows["name"], value_set=listing["name"])
    if place.null_count:
        return False
    listed = listing.select(["size_bytes", "version"]).take(place)
    return all(
        pc.all(pc.equal(rows[column], listed[column]), min_count=0).as_py() for column in listed.column_names
    )


def source_of(row: dict[str, Any]) -> ShardSource:
    """The image shard of a row of the index."""
    return ShardSource(*(row[f"source_{name}"] for name in ("url", "size_bytes", "etag", "sha256")))


def owed_from_json(value: dict[str, Any]) -> Owed:
    """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError for what is none."""
    return Owed(**{**value, "source": ShardSource(**value["source"])})


def _owed_rows(rows: pa.Table, listing: pa.Table) -> list[Owed]:
    """Those of `rows` whose data file is not listed, or is another one by now."""
    place = pc.index_in(rows["name"], value_set=listing["name"])
    is_gone = place.is_null()
    listed = listing.select(["size_bytes", "version"]).take(place)
    is_other = pc.or_(
        pc.not_equal(rows["size_bytes"], listed["size_bytes"]),
        pc.not_equal(rows["version"], listed["version"]),
    )
    wanted = rows.filter(pc.or_kleene(is_gone, is_other.fill_null(True)))
    listed_names = set(listing["name"].to_pylist()) if wanted.num_rows else set()
    return [
        Owed(
            row["name"],
            source_of(row),
            row["num_rows"],
            row["content_digest"] if row["name"] in listed_names else "",
        )
        for row in wanted.to_pylist()
    ]


def _settle(owed: Collection[Owed], present: Any, table: pa.Table | None = None) -> tuple[Owed, ...]:
    """Those of `owed` that still are, when the token shards with the names `present` are there.

    One that was gone and came back was made again. One that was never seen to be gone has to have the rows that it
    had, as far as `table` tells, unless its image shard is another one now.
    """
    if not owed:
        return ()
    names = set(present.to_pylist())
    rows = {}
    if table is not None:
        wanted = pa.array({each.name for each in owed}, pa.string())
        rows = {
            row["name"]: row for row in table.filter(pc.is_in(table["name"], value_set=wanted)).to_pylist()
        }
    left: dict[str, Owed] = {}
    for each in owed:
        row = rows.get(each.name)
        if each.name not in names:
            left[each.name] = replace(each, content_digest="")
        elif each.content_digest and (
            row is None or row["content_digest"] != each.content_digest and source_of(row) == each.source
        ):
            left.setdefault(each.name, each)
    return tuple(left[name] for name in sorted(left))


def _without(listing: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    return listing.filter(pc.invert(pc.is_in(listing["name"], value_set=names)))


def _read_footers(
    url: str, spec: TokenSpec, files: pa.Table
) -> Iterator[tuple[dict[str, Any], ShardMetadata | UserError]]:
    """(row of the listing, footer or why it has none) of the `files` that are still there. Few of them are in memory
    at a time."""

    def read(file: dict[str, Any]) -> tuple[dict[str, Any], ShardMetadata | UserError] | None:
        try:
            return file, read_footer(url, file["name"], spec)
        except FileNotFoundError:
            return None  # another job has just discarded it
        except UserError as error:
            return file, error

    rows = (row for batch in files.to_batches(max_chunksize=1024) for row in batch.to_pylist())
    with ThreadPoolExecutor(NUM_READERS, "footers") as pool:
        for answer in map_ahead(pool, read, rows, max_items=2 * NUM_READERS):
            if answer is not None:
                yield answer


def _subtract(total: ShardStatistics, part: ShardStatistics) -> None:
    """The inverse of `total.merge(part)`, exact because all are integers."""
    negative = ShardStatistics.from_json(part.to_json())
    for each in dataclasses.fields(negative):
        value = getattr(negative, each.name)
        if each.name in ("num_globals", "num_patches"):
            continue  # the shape, not a count
        is_dict = isinstance(value, dict)
        setattr(negative, each.name, {error: -count for error, count in value.items()} if is_dict else -value)
    total.merge(negative)
    total.quarantine_reasons = {error: count for error, count in total.quarantine_reasons.items() if count}


def _expect(is_so: bool, found: str) -> None:
    if not is_so:
        raise ValueError(f"has {found}")
