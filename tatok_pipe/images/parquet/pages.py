"""Parquet's page headers, checked before pyarrow sees them: it would allocate whatever size a header declares.

A column chunk is a row of pages, each behind a header in Thrift's compact protocol. The footer says where the
chunks are and nothing dependable about pages, so `PageGuard` stands between pyarrow and the file, and follows
the headers as the bytes go by. Format: https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tatok_pipe.images.parquet.thrift import read_struct

_FIRST_READ_BYTES = 512
_MAX_HEADER_BYTES = 1 << 20  # some writers put a value's statistics in; pyarrow's own limit is 16 MiB
_DICTIONARY_PAGE = 2


class Seekable(Protocol):
    """A readable binary file."""

    @property
    def closed(self) -> bool: ...

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class BadPage(Exception):
    """A page that is damaged, or too large to be held. The message says where and what, `advice` what to do."""

    def __init__(self, message: str, advice: str = "write or copy the shard again") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class PageHeader:
    type: int
    uncompressed_bytes: int
    compressed_bytes: int
    num_values: int
    header_bytes: int


@dataclass
class Chunk:
    """A column chunk: the bytes [start, stop), and the values and decompressed bytes that the footer promises."""

    start: int
    stop: int
    num_values: int
    num_bytes: int
    next_header: int = 0  # where the first unchecked header is
    num_seen: int = 0  # values of the pages before it

    def __post_init__(self) -> None:
        self.next_header = self.start


class PageGuard:
    """A binary file for pyarrow that refuses to deliver pages of more than `max_page_bytes`.

    `option` is what a user who has a say in that calls it.

    What is wrong is raised as BadPage through pyarrow, and, since that may turn it into something else, kept
    with every other error of the file in `error`.
    """

    def __init__(self, file: Seekable, max_page_bytes: int, *, option: str = "max_page_bytes") -> None:
        self._file = file
        self._max_page_bytes = max_page_bytes
        self._option = option
        self._chunks: list[Chunk] = []
        self._starts: list[int] = []
        self.error: Exception | None = None

    def watch(self, chunks: Sequence[Chunk]) -> None:
        """Check the pages of these chunks from now on. They must not overlap."""
        self._chunks = sorted(chunks, key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self._chunks]

    def read(self, size: int = -1) -> bytes:
        try:
            start = self._file.tell()
            data = self._file.read(size)
            self._check(start, start + len(data))
        except Exception as error:
            self.error = self.error or error
            raise
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """The file belongs to whoever opened it."""

    @property
    def closed(self) -> bool:
        return self._file.closed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def _check(self, start: int, stop: int) -> None:
        first = max(0, bisect_right(self._starts, start) - 1)
        for chunk in self._chunks[first:]:
            if chunk.start >= stop:
                break
            while chunk.next_header < min(stop, chunk.stop) and chunk.num_seen < chunk.num_values:
                self._check_page(chunk)
        self._file.seek(stop)

    def _check_page(self, chunk: Chunk) -> None:
        at = chunk.next_header
        header = self._read_header(at, chunk.stop)
        if max(header.uncompressed_bytes, header.compressed_bytes) > self._max_page_bytes:
            sizes = f"{header.uncompressed_bytes} bytes ({header.compressed_bytes} stored)"
            told = f"byte {at}: a page of {sizes}, more than "
            if not self._option:
                raise BadPage(f"{told}{self._max_page_bytes}")
            raise BadPage(
                f"{told}{self._option}={self._max_page_bytes}",
                f"raise {self._option}, or write the file with smaller pages "
                "(pyarrow.parquet.write_table(..., write_batch_size=16))",
            )
        end = at + header.header_bytes + header.compressed_bytes
        if min(header.uncompressed_bytes, header.compressed_bytes, header.num_values) < 0 or end > chunk.stop:
            raise BadPage(f"byte {at}: a damaged page header")
        if header.num_values > chunk.num_values:
            raise BadPage(
                f"byte {at}: a page of {header.num_values} values in a column of {chunk.num_values}"
            )
        if header.type != _DICTIONARY_PAGE:
            chunk.num_seen += header.num_values
        chunk.next_header = end

    def _read_header(self, at: int, stop: int) -> PageHeader:
        size = _FIRST_READ_BYTES
        while True:
            self._file.seek(at)
            data = self._file.read(min(size, stop - at))
            try:
                return parse_page_header(data)
            except IndexError:  # the header goes on behind what was read
                is_all = len(data) < size or size >= _MAX_HEADER_BYTES
            except ValueError:
                is_all = True
            if is_all:
                raise BadPage(f"byte {at}: a damaged page header")
            size *= 8


def parse_page_header(data: bytes) -> PageHeader:
    """The header that `data` begins with. Raises IndexError where it does not end within; ValueError."""
    fields, num_bytes = read_struct(data)
    details = next((fields[number] for number in (5, 7, 8) if isinstance(fields.get(number), dict)), {})
    sizes = [fields.get(1), fields.get(2), fields.get(3), details.get(1, 0)]
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError("a page header without sizes")
    return PageHeader(*sizes, header_bytes=num_bytes)
