"""Token shards on disk, format 3: one Parquet file per image shard, which any Parquet reader reads.

The bytes depend on the rows, the spec and the source alone: row groups have a fixed size however the rows
came in, and nothing of the clock or the machine is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError, has_outside_cause
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.digest import ContentDigest
from tatok_pipe.tokens.invariants import check_record, check_table
from tatok_pipe.tokens.shard_file import check_texts, open_shard
from tatok_pipe.tokens.spec import FORMAT_VERSION, TokenSpec, quarantine_schema, token_schema
from tatok_pipe.tokens.statistics import ShardStatistics, float32_toward_zero

ROW_GROUP_ROWS = 2048
_PREFIX = "tatok."
# Every page has a checksum, so that a reader who asks for it meets a flipped bit as an error.
_PARQUET: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "write_page_checksum": True}
_FOOTER_BYTES = 1 << 16  # a first guess that holds most footers in one request
_PART_NUMBER = re.compile(r"#\d{6,}$")
_TRAILER_BYTES = 8  # footer length (4 bytes, little-endian) and "PAR1"


@dataclass(frozen=True)
class ShardSource:
    """The image shard that a token shard was made from."""

    url: str  # canonical, without secrets
    size_bytes: int
    etag: str = ""  # the store's content tag; empty where it has none
    sha256: str = ""  # of the bytes that were read, where there is no ETag


@dataclass(frozen=True)
class ShardMetadata:
    """What the footer of a token shard tells."""

    spec: TokenSpec
    source: ShardSource
    statistics: ShardStatistics
    num_rows: int
    content_digest: str  # `ContentDigest` of the rows


def token_shard_name(shard_url: str) -> str:
    """The name (without `.parquet`) of the token shard made from an image shard: `<stem>-<8 hex>`."""
    url = storage.canonical_url(shard_url)
    # The number of a part stands behind the whole name of its source, `list.jsonl#000001`, and belongs to the stem. Its
    # sign means something in URLs.
    number = _PART_NUMBER.search(url)
    stem = PurePosixPath(url[: number.start()] if number else url).stem + (number[0] if number else "")
    stem = stem.replace("#", "-")
    return f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class ShardWriter:
    """Writes one token shard to a local file, to be published once it is closed and `check.verify_written`.

    As a context manager it closes on success and removes the file on an error, because a Parquet file that
    was closed early looks complete.
    """

    def __init__(self, local_path: str | os.PathLike[str], spec: TokenSpec, source: ShardSource) -> None:
        self.path = os.fspath(local_path)
        self.spec = spec
        self.source = source
        self.statistics = empty_statistics(spec)
        self.statistics.bytes_in = source.size_bytes
        self._digest = ContentDigest()
        self._schema = token_schema(spec)
        self._pending: list[TokenRecord] = []
        self._pending_table = self._schema.empty_table()
        options: dict[str, Any] = _PARQUET | {"use_dictionary": _repetitive(self._schema)}
        self._writer = pq.ParquetWriter(self.path, self._schema, **options)

    def append(self, records: Sequence[TokenRecord]) -> None:
        """Add rows in source order. Raises ValueError naming the key of a row that breaks the format, UnusableShard
        where the texts of a row group are more than a reader takes."""
        for record in records:
            check_record(record, self.spec)
        # Now, not when they are written: what happens to the arrays in between is then seen, too.
        self._digest.update(records)
        self._pending.extend(records)
        while len(self._pending) >= ROW_GROUP_ROWS:
            self._write(self._pending[:ROW_GROUP_ROWS])
            del self._pending[:ROW_GROUP_ROWS]

    def append_table(self, table: pa.Table) -> None:
        """`append` for rows as they were read, of which no records are made. A writer is given either."""
        assert not self._pending
        table = table.cast(self._schema)
        check_table(table, self.spec)
        self._digest.update_from_table(table)
        self._pending_table = pa.concat_tables([self._pending_table, table])
        while self._pending_table.num_rows >= ROW_GROUP_ROWS:
            self._write_table(self._pending_table.slice(0, ROW_GROUP_ROWS))
            self._pending_table = self._pending_table.slice(ROW_GROUP_ROWS)

    def add_quarantined(self, rows: Sequence[Quarantined]) -> None:
        """Count source samples that have no row here, for the statistics."""
        self.statistics.add_quarantined(rows)

    @property
    def content_digest(self) -> str:
        """`ContentDigest` of the rows appended so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Write what is left and the footer. The file is complete from here on."""
        if self._pending:
            self._write(self._pending)
            self._pending = []
        if self._pending_table.num_rows:
            self._write_table(self._pending_table)
            self._pending_table = self._schema.empty_table()
        values = {
            "format_version": FORMAT_VERSION,
            **self.spec.to_json(),
            "source": dataclasses.asdict(self.source),
            "statistics": self.statistics.to_json(),
            "content_digest": self.content_digest,
        }
        self._writer.add_key_value_metadata({_PREFIX + name: _dumps(value) for name, value in values.items()})
        self._writer.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        except BaseException:
            self._discard()
            raise
        if error is not None:
            self._discard()

    def _discard(self) -> None:
        self._writer.close()
        os.unlink(self.path)

    def _write(self, records: list[TokenRecord]) -> None:
        self.statistics.update(records)
        self._write_group(to_table(records, self._schema))

    def _write_table(self, table: pa.Table) -> None:
        self.statistics.update_from_table(table)
        self._write_group(table.combine_chunks())  # how the rows came in leaves no trace

    def _write_group(self, table: pa.Table) -> None:
        try:
            check_texts(table)
        except ValueError as error:
            raise UnusableShard(
                storage.redact(self.source.url),
                self.statistics.num_images,
                str(error),
                "input.limits.ignore=[meta], or [meta,caption], does without them",
            ) from None
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _repetitive(schema: pa.Schema) -> list[str]:
    """The columns, as Parquet calls them, that are written with a dictionary. Hardly a number of nats or a score is
    there twice: a dictionary of them grows until it is given up, and is kept with what came before (pyarrow 26).
    Without one, rows with scores take a quarter less, and half the time to write and to read."""
    lists = {field.name for field in schema if pa.types.is_list(field.type)}
    return [
        f"{field.name}.list.element" if field.name in lists else field.name
        for field in schema
        if not pa.types.is_floating(field.type.value_type if field.name in lists else field.type)
    ]


def empty_statistics(spec: TokenSpec) -> ShardStatistics:
    """Statistics of no rows, of the shape of `spec`."""
    return ShardStatistics.empty(
        num_globals=spec.num_globals,
        num_patches=spec.num_patches,
        global_vocab=spec.global_vocab,
        patch_vocab=spec.patch_vocab,
    )


def to_table(records: Sequence[TokenRecord], schema: pa.Schema) -> pa.Table:
    """The rows as a table of `token_schema`; `to_records` is the inverse, up to float32."""
    columns: dict[str, Any] = {
        name: pa.array([getattr(record, name) for record in records], schema.field(name).type)
        for name in (
            "key",
            "label",
            "caption",
            "meta",
            "width",
            "height",
            "crop",
            "num_tokens",
            "entropy_total",
        )
    }
    columns["mutual_information"] = pa.array([record.mutual_information for record in records], pa.float32())
    columns["entropy_dropped"] = pa.array(float32_toward_zero([record.entropy_dropped for record in records]))
    for name in _list_columns(schema.names):
        columns[name] = _list_array([getattr(record, name) for record in records], schema.field(name).type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def to_records(table: pa.Table) -> list[TokenRecord]:
    """The rows of a table in the columns of `token_schema`. Arrays are read-only views of its memory."""
    plain = ["key", "label", "caption", "meta", "width", "height", "crop", "entropy_total", "entropy_dropped"]
    columns = {name: table.column(name).to_pylist() for name in (*plain, "mutual_information")}
    for name in _list_columns(table.column_names):
        columns[name] = [row for chunk in table.column(name).chunks for row in _split(chunk)]
    return [
        TokenRecord(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    ]


def iter_records(
    url: str, *, spec: TokenSpec | None = None, choose: Callable[[pa.Table], np.ndarray] | None = None
) -> Iterator[TokenRecord]:
    """The rows of a token shard in order, one row group in memory at a time, of which `choose` gives the numbers of
    those that are wanted. Raises RefusedError where it was made with other settings than `spec`, UserError where it is
    no token shard, or cannot be read."""
    with damage_told(url), open_shard(url) as file:
        if spec is not None:
            check_settings(parse_footer(file.metadata, url), spec, url)
        for group in range(file.num_row_groups):
            table = file.read([group])
            yield from to_records(table if choose is None else table.take(choose(table)))


def read_group(url: str, group: int, *, spec: TokenSpec) -> list[TokenRecord]:
    """The rows of one row group of a token shard. Raises as `iter_records`."""
    with damage_told(url), open_shard(url) as file:
        check_settings(parse_footer(file.metadata, url), spec, url)
        return to_records(file.read([group]))


def read_records(source: pa.Table | str | os.PathLike[str]) -> list[TokenRecord]:
    """All rows of a token shard, given as a table, path or URL."""
    return to_records(source) if isinstance(source, pa.Table) else list(iter_records(os.fspath(source)))


def read_shard_metadata(url: str) -> ShardMetadata:
    """What a token shard tells about itself, from its footer alone.

    Raises UserError where the file is no token shard, or one of another format version.
    """
    tail = storage.read_tail(url, _FOOTER_BYTES)
    needed = int.from_bytes(tail[-_TRAILER_BYTES:-4], "little") + _TRAILER_BYTES
    if tail[-4:] == b"PAR1" and needed > len(tail):
        tail = storage.read_tail(url, needed)
    try:
        footer = pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{storage.redact(url)}: is not a Parquet file ({error}); expected a token shard"
        ) from error
    return parse_footer(footer, url)


def parse_footer(footer: pq.FileMetaData, url: str) -> ShardMetadata:
    """What the footer of the token shard at `url` says. Raises UserError where that is not format 3."""
    prefix = _PREFIX.encode()
    texts = {
        name.removeprefix(prefix).decode("utf-8", "replace"): value
        for name, value in (footer.metadata or {}).items()
        if name.startswith(prefix)
    }
    version = texts.get("format_version", b"missing").decode("utf-8", "replace")
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{storage.redact(url)}: token format version {version}, this program reads version "
            f"{FORMAT_VERSION}; give a shard that tokenize_corpus wrote, or use the program that wrote this one"
        )
    try:
        values = {name: json.loads(value) for name, value in texts.items()}
        return ShardMetadata(
            spec=TokenSpec.from_json(
                {each.name: values[each.name] for each in dataclasses.fields(TokenSpec)}
            ),
            source=ShardSource(**values["source"]),
            statistics=ShardStatistics.from_json(values["statistics"]),
            num_rows=footer.num_rows,
            content_digest=str(values["content_digest"]),
        )
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise UserError(
            f"{storage.redact(url)}: its footer is not what format {FORMAT_VERSION} asks for "
            f"({type(error).__name__}: {error}); inspect_tokens --repair removes what can be made again"
        ) from error


@contextmanager
def damage_told(url: str) -> Iterator[None]:
    """A file that is not what it should be becomes a UserError of one line; a store or disk that fails stays what it
    is, since it may be asked again."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and (error.errno is not None or has_outside_cause(error)):
            raise
        text = " ".join(str(error).split())
        raise UserError(
            f"{storage.redact(url)}: cannot be read: {text}; `python -m tatok_pipe.inspect_tokens --verify` tells what "
            "is wrong with its dataset"
        ) from error


def check_settings(footer: ShardMetadata, spec: TokenSpec, url: str) -> None:
    """Raise RefusedError where the token shard at `url` was made with other settings than its dataset's `spec`."""
    if footer.spec != spec and (differences := footer.spec.differences(spec)):
        raise RefusedError(
            f"{storage.redact(url)}: was made with other settings than its dataset ({'; '.join(differences)}); remove "
            "the file and tokenize its shard again"
        )


def write_quarantine(local_path: str | os.PathLike[str], rows: Sequence[Quarantined]) -> None:
    """Write the quarantine file of one image shard to a local path."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=quarantine_schema())
    pq.write_table(table, os.fspath(local_path), **_PARQUET)


def read_quarantine(url: str) -> list[Quarantined]:
    """The rows of a quarantine file, in source order. Raises UserError where it cannot be read."""
    with damage_told(url), open_shard(url) as file:
        return [Quarantined(**row) for row in file.read(range(file.num_row_groups)).to_pylist()]


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _list_columns(names: Sequence[str]) -> list[str]:
    known = ("global_codes", "patch_codes", "patch_positions", "patch_entropy", "patch_score")
    return [name for name in known if name in names]


def _list_array(rows: Sequence[np.ndarray | None], data_type: pa.DataType) -> pa.Array:
    present = [row for row in rows if row is not None]
    item_type = data_type.value_type.to_pandas_dtype()
    values = pa.array(np.concatenate(present).astype(item_type) if present else np.empty(0, item_type))
    if pa.types.is_fixed_size_list(data_type):
        return pa.FixedSizeListArray.from_arrays(values, type=data_type)
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    missing = pa.array([row is None for row in rows]) if len(present) < len(rows) else None
    return pa.ListArray.from_arrays(offsets, values, type=data_type, mask=missing)


def _split(chunk: pa.Array) -> list[np.ndarray | None]:
    values = chunk.values.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(chunk.type):
        size = chunk.type.list_size
        starts = (np.arange(len(chunk) + 1) + chunk.offset) * size
    else:
        starts = chunk.offsets.to_numpy()
    rows: list[np.ndarray | None] = [
        values[start:stop] for start, stop in zip(starts, starts[1:], strict=False)
    ]
    if chunk.null_count:
        rows = [row if valid else None for row, valid in zip(rows, chunk.is_valid().to_pylist(), strict=True)]
    return rows
