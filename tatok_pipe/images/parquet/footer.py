"""Where a Parquet footer says the columns are, read without pyarrow: its metadata objects end the process on a
damaged footer, where a C++ exception passes through code that expects none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tatok_pipe.images.parquet.pages import Chunk, Seekable
from tatok_pipe.images.parquet.thrift import read_struct

_MAX_FOOTER_BYTES = 8 << 20  # a hundred thousand columns; parsed, it may take 70 times as much
_MAGIC = b"PAR1"
_TRAILER_BYTES = 8  # length of the footer (4 bytes, little-endian) and the magic bytes


@dataclass(frozen=True)
class Footer:
    """What the footer of a Parquet file promises, checked against itself."""

    num_rows: int
    row_groups: list[list[Chunk]]  # a chunk for every column that is no struct

    def chunks(self, columns: Sequence[int]) -> list[Chunk]:
        """The chunks of these columns that hold anything. Raises ValueError where they overlap."""
        chosen = [
            group[column] for group in self.row_groups for column in columns if group[column].num_values
        ]
        previous = len(_MAGIC)
        for chunk in sorted(chosen, key=lambda chunk: chunk.start):
            if chunk.start < previous:
                raise ValueError(f"columns overlap at byte {chunk.start}")
            previous = chunk.stop
        return chosen


class NoFooter(ValueError):
    """A file without a Parquet footer. `is_lasting`: it is of another kind, no part of one that may yet come whole."""

    def __init__(self, message: str, *, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


def read_footer(file: Seekable) -> Footer:
    """The footer of a file, read at its end, and the file at its beginning again. Raises NoFooter, and ValueError as
    `parse_footer` does. To be called before pyarrow, which would read and parse a footer of any size."""
    size = file.seek(0, 2)
    if size == 0:
        raise NoFooter("the file has 0 bytes", is_lasting=True)
    file.seek(max(0, size - _TRAILER_BYTES))
    trailer = file.read(_TRAILER_BYTES)
    if trailer[4:] != _MAGIC:
        file.seek(0)
        begin = file.read(16)
        if begin.startswith(_MAGIC):
            raise NoFooter("cut off: the footer of a Parquet file is missing")
        raise NoFooter(f"not a Parquet file: it begins with {begin!r}", is_lasting=True)
    num_bytes = int.from_bytes(trailer[:4], "little")
    stop = size - _TRAILER_BYTES
    if num_bytes > min(_MAX_FOOTER_BYTES, stop - len(_MAGIC)):
        raise NoFooter(
            f"a Parquet footer of {num_bytes} bytes in a file of {size}, expected at most {_MAX_FOOTER_BYTES}"
        )
    file.seek(stop - num_bytes)
    footer = parse_footer(file.read(num_bytes), data_stop=stop - num_bytes)
    file.seek(0)
    return footer


def parse_footer(data: bytes, *, data_stop: int) -> Footer:
    """The footer `data` of a file whose columns end before `data_stop`. Raises ValueError."""
    try:
        metadata, _ = read_struct(data)
        groups = [_parse_row_group(group, data_stop) for group in _list(metadata.get(4))]
        num_rows = _size(metadata.get(3))
    except IndexError as error:
        raise ValueError(f"the footer is cut off: {error}") from None
    if num_rows != sum(rows for rows, _ in groups):
        raise ValueError(f"{num_rows} rows, but {sum(rows for rows, _ in groups)} in the row groups")
    if len({len(chunks) for _, chunks in groups}) > 1:
        raise ValueError("row groups of different columns")
    return Footer(num_rows, [chunks for _, chunks in groups])


def _parse_row_group(group: Any, data_stop: int) -> tuple[int, list[Chunk]]:
    """Number of rows, and the columns."""
    fields = _struct(group)
    num_rows = _size(fields.get(3))
    return num_rows, [_parse_chunk(_struct(column), data_stop) for column in _list(fields.get(1))]


def _parse_chunk(column: dict[int, Any], data_stop: int) -> Chunk:
    if 1 in column or 8 in column or 9 in column:
        raise ValueError("a column in another file, or encrypted")
    fields = _struct(column.get(3))
    start = _size(fields.get(9))
    dictionary = fields.get(11)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    stop = start + _size(fields.get(7))
    if stop > data_stop:
        raise ValueError(f"a column of bytes {start} to {stop}, where the columns end at {data_stop}")
    return Chunk(start, stop, num_values=_size(fields.get(5)), num_bytes=_size(fields.get(6)))


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("a struct is missing in the footer")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is missing in the footer")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"a size of {value} in the footer")
    return value
