"""A token shard as a Parquet file of which nothing takes more memory than it may.

A few KB can stand for many GB: pages are compressed, values are repeated through dictionaries and run lengths. So sizes
that the footer promises are checked before anything is read, page headers as their bytes go by
(`images.parquet_pages`), and texts while they are dictionaries. What is written is held to the same limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.images.parquet.footer import read_footer
from tatok_pipe.images.parquet.pages import BadPage, PageGuard, Seekable

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

TEXT_COLUMNS = ("key", "caption", "meta")
MAX_COLUMN_BYTES = 128 << 20  # of a row group: its texts, or its numbers at 4 bytes
_NUMBER_BYTES = 4
_BLOCK_BYTES = 1 << 20  # about a row group of a token shard; the last block holds most footers
_NUM_AHEAD = 4


class ShardFile:
    """The row groups of a token shard, or quarantine file, in a binary file. Pages are checked against their checksums.

    All methods raise what pyarrow raises, and ValueError where a column is larger than MAX_COLUMN_BYTES.
    """

    def __init__(
        self, source: Seekable, *, read_ahead: Callable[[Iterable[tuple[int, int]]], None] | None = None
    ) -> None:
        """`read_ahead` is told which byte ranges will be read, before they are."""
        self._read_ahead = read_ahead
        self._guard = PageGuard(source, MAX_COLUMN_BYTES, option="")
        footer = read_footer(source)  # pyarrow's objects of a damaged one may end the process
        plain = pq.ParquetFile(self._guard)
        texts = [name for name in TEXT_COLUMNS if name in plain.schema_arrow.names]
        self.schema: pa.Schema = plain.schema_arrow
        self.metadata: pq.FileMetaData = plain.metadata
        self.num_row_groups: int = plain.num_row_groups
        self._paths = [plain.schema.column(place).path for place in range(len(plain.schema.names))]
        self._groups = footer.row_groups
        self._file = pq.ParquetFile(
            self._guard, metadata=plain.metadata, read_dictionary=texts, page_checksum_verification=True
        )
        self._guard.watch(footer.chunks(range(len(self._paths))))

    def read(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of some row groups, or all; the name of a column stands for all that is in it."""
        chosen = [
            (path, chunk)
            for group in groups
            for path, chunk in zip(self._paths, self._groups[group], strict=True)
            if columns is None or path.partition(".")[0] in columns
        ]
        for path, chunk in chosen:
            size = max(chunk.num_bytes, chunk.num_values * _NUMBER_BYTES)
            if size > MAX_COLUMN_BYTES:
                raise ValueError(_too_large(size, path))
        if self._read_ahead is not None:
            self._read_ahead((chunk.start, chunk.stop) for _, chunk in chosen)
        names = None if columns is None else list(columns)
        try:
            table = self._file.read_row_groups(list(groups), columns=names, use_threads=False)
        except Exception:
            if isinstance(self._guard.error, BadPage):
                raise ValueError(str(self._guard.error)) from None
            raise
        return _expand(table, len(groups))


@contextmanager
def open_shard(url: str) -> Iterator[ShardFile]:
    """The token shard at `url`: only the bytes of the columns that are read are fetched."""
    info = storage.file_info(url)
    source = storage.open_random_access(url, info=info, block_bytes=_BLOCK_BYTES, num_ahead=_NUM_AHEAD)
    with closing(source):
        yield ShardFile(source, read_ahead=source.read_ahead)


def check_texts(table: pa.Table) -> None:
    """Raise ValueError where the texts of a row group, a table that is to be written, are more than may be read."""
    for name in TEXT_COLUMNS:
        size = pc.sum(pc.binary_length(table[name]).cast(pa.int64())).as_py() or 0
        if size > MAX_COLUMN_BYTES:
            raise ValueError(_too_large(size, name))


def _too_large(size: int, name: str) -> str:
    return f"{size} bytes of {name} in a row group, expected at most {MAX_COLUMN_BYTES}"


def _expand(table: pa.Table, num_groups: int) -> pa.Table:
    """Texts as such, of columns that were read as dictionaries."""
    for place, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        column = table.column(place)
        size = sum(
            pc.sum(pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)).as_py() or 0
            for chunk in column.chunks
        )
        if size > num_groups * MAX_COLUMN_BYTES:
            raise ValueError(_too_large(size, field.name))
        plain = field.with_type(field.type.value_type)
        table = table.set_column(place, plain, column.cast(plain.type))
    return table
