"""`_index.parquet`: what the footers of a token dataset say, so that nobody has to read all of them again.

A cache. The listing of data/ is the truth: a row counts only while its data file is there with the size and
version that the row names. The merged statistics stand in the same file as the rows that they count, and the
file is replaced in one step, so that of two jobs that write it at once either one leaves a right one.

What it counted once and cannot find any more, though nobody discarded it, is *owed*: it is remembered here until a
token shard of that name is there again, so that a loss is not forgotten by counting afresh.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.format import (
    ShardMetadata,
    ShardSource,
    check_settings,
    empty_statistics,
    read_shard_metadata,
)
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index, empty_index, load_index, save_index
from tatok_pipe.tokens.layout import INDEX_FILE, data_url
from tatok_pipe.tokens.listing import LISTING_SCHEMA, Chunks, is_current, list_data, without
from tatok_pipe.tokens.owed import Owed, owed_rows, settle, source_of
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics

logger = logging.getLogger(__name__)

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

NUM_READERS = 32
SAVE_EVERY_S = 300.0  # what a killed refresh has to read again


Progress = Callable[[int, int], None]  # (footers read, footers to read)


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
    if base is not None and not is_current(base.table, listing):
        logger.info("%s: shards that the index counts are gone or were replaced", storage.redact(url))
        owed = (*owed, *owed_rows(base.table, listing))
        times = {
            row["name"]: (source_of(row), row["source_mtime_ns"])
            for row in base.table.filter(pc.not_equal(base.table["source_mtime_ns"], 0)).to_pylist()
        }
        base = None
    if base is None:
        logger.info("%s: reading the footers of all %d shards", storage.redact(url), listing.num_rows)
    builder = _Builder(base or empty_index(spec), owed, times)
    new = without(listing, builder.known.table["name"])
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
    if not named.num_rows or not is_current(named, list_data(url)):
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
    owed = settle((*index.owed, *owed_rows(index.table, listing)), listing["name"])
    save_index(url, spec, replace(empty_index(spec), owed=owed))


def read_footer(url: str, name: str, spec: TokenSpec) -> ShardMetadata:
    """What the token shard `name` of the dataset at `url` tells about itself.

    Raises RefusedError where it was made with another spec than `spec`, FileNotFoundError where there is
    none, UserError where it is no token shard.
    """
    footer = read_shard_metadata(data_url(url, name))
    check_settings(footer, spec, data_url(url, name))
    return footer


class _Builder:
    def __init__(
        self, known: Index, owed: tuple[Owed, ...], times: dict[str, tuple[ShardSource, int]]
    ) -> None:
        self.known = known
        self.broken: dict[str, str] = {}
        self._owed = owed
        self._times = times  # by name: source and its time, as the index had them that is not gone on from
        self.num_read = 0
        self._rows = Chunks(INDEX_SCHEMA)
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
        owed = settle(self._owed, names, table)
        return Index(table, self._statistics, self.num_read, owed, self.broken)


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
