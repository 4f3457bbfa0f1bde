"""The members of a tar archive, from a stream that is read once from front to back, every byte accounted for.

Why not `tarfile.open(mode="r|")`, or webdataset's iterator over it: both take a damaged header, half a
header, a hole of zeros or a missing end for the end of the archive, and lose the rest of a shard in silence.
They also read extended headers of any declared size into memory. Here `tarfile` only parses single headers.
"""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tatok_pipe.images.kinds import kind_of_content

BLOCK_BYTES = 512
_CHUNK_BYTES = 4 << 20
_MAX_EXTENDED_HEADER_BYTES = 1 << 20
_MAX_PADDING_BYTES = 1 << 20  # writers pad to a record of 10 KiB; blocking factors beyond 1 MiB are for tapes

_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSION_TYPES = (*_PAX_TYPES, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_TYPES_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")


class BrokenTar(Exception):
    """The stream is not a tar archive, or not the whole of one, or beyond a limit. The message says where and
    what, `advice` what to do."""

    def __init__(self, message: str, advice: str = "write or copy the shard again") -> None:
        super().__init__(message)
        self.advice = advice


class NotTar(BrokenTar):
    """The stream is whole and something else, or beyond a limit: to read it again tells the same."""


@dataclass(frozen=True)
class Member:
    """One member. `data` is None where it was not asked for, or the member is no plain file."""

    name: str  # bytes that are not UTF-8 appear as \\xNN
    size: int  # bytes, as declared
    is_file: bool  # False for links, devices and unknown types
    data: bytes | None


@dataclass(frozen=True)
class Place:
    """Where a member lies in its archive: its data are from byte `offset` on."""

    name: str  # bytes that are not UTF-8 appear as \\xNN
    size: int  # bytes, as declared
    is_file: bool
    is_directory: bool
    offset: int

    @property
    def end(self) -> int:
        """Where its data end."""
        return self.offset + self.size


def read_members(
    stream: BinaryIO,
    *,
    wanted: Callable[[str, int], bool],
    max_members: int,
    max_shard_bytes: int,
    require_end_marker: bool = True,
) -> Iterator[Member]:
    """Every member but directories, in order, holding no more than one at a time.

    Data is kept of plain files for which `wanted(name, bytes)` holds; the rest is skipped. Raises BrokenTar,
    after the members before the damage; also for more than `max_members` members, directories included, and
    where headers and declared sizes add up to more than `max_shard_bytes`.

    An archive without the zero blocks that end it is refused, although most tools would read it: tarfile,
    webdataset, GNU tar and BSD tar all write the marker, so it is missing where the writer died or was never
    closed, or where a transfer stopped between two members, and then samples are missing too. Who knows that
    none are passes `require_end_marker=False`. One zero block of the two will do: it follows a whole member.
    """
    source = _Source(stream)
    for place in _read_headers(source, max_members, max_shard_bytes, require_end_marker):
        data = None
        if place.is_file and wanted(place.name, place.size):
            data = source.read_padded(place.size)
        else:
            source.skip(place.size + -place.size % BLOCK_BYTES)
        if not place.is_directory:
            yield Member(place.name, place.size, place.is_file, data)


def find_places(
    file: Any, *, size_bytes: int, max_members: int, require_end_marker: bool = True
) -> Iterator[Place]:
    """Where the members but directories lie in an archive that can be read at any place and has `size_bytes`, from its
    headers alone. The data of a member may be read while it is the last one given. Raises as `read_members`."""
    source = _SeekingSource(file, size_bytes)
    for place in _read_headers(source, max_members, sys.maxsize, require_end_marker):
        if not place.is_directory:
            yield place
        source.move_to(place.end + -place.size % BLOCK_BYTES)


def read_places(stream: BinaryIO) -> Iterator[Place]:
    """As `find_places`, from a stream, all of which is read on the way."""
    source = _Source(stream)
    for place in _read_headers(source, sys.maxsize, sys.maxsize, True):
        if not place.is_directory:
            yield place
        source.skip(place.size + -place.size % BLOCK_BYTES)


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a block, which comes before data, may be the header of a plain file with this name and size. Those that
    headers have no room for stand before it, and are not asked for."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    has_name = len(name) >= tarfile.LENGTH_NAME or not name.isascii() or header.name == name
    return header.type in _FILE_TYPES and header.size in (size, 0) and has_name


def _read_headers(
    source: _Source, max_members: int, max_shard_bytes: int, require_end_marker: bool
) -> Iterator[Place]:
    """The members, each when the source is at its data, which are to be passed before the next one is asked for."""
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    num_members = 0
    while True:
        start = source.offset
        block = source.read(BLOCK_BYTES)
        if start == 0 and not block:
            raise NotTar("the file has 0 bytes")
        extended = long_name is not None or bool(pax)
        if not block and not extended and not require_end_marker:
            return
        if len(block) < BLOCK_BYTES:
            raise BrokenTar(_describe_cut(start, len(block), extended))
        if not any(block):
            if extended:
                raise BrokenTar(f"byte {start}: an extended header is followed by no member")
            source.check_padding()
            return
        header = _parse_header(block, start)

        if header.type in _EXTENSION_TYPES:
            if header.size > _MAX_EXTENDED_HEADER_BYTES:
                raise BrokenTar(
                    f"byte {start}: an extended header of {header.size} bytes, "
                    f"expected at most {_MAX_EXTENDED_HEADER_BYTES}"
                )
            if source.offset > max_shard_bytes:
                raise NotTar(f"more than max_shard_bytes={max_shard_bytes} of extended headers")
            payload = source.read_padded(header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = payload.split(b"\0", 1)[0]
            elif header.type in _PAX_TYPES:
                pax = _parse_pax(payload, start)
            continue

        size = header.size
        if b"size" in pax:
            if not re.fullmatch(rb"\d{1,20}", pax[b"size"]):
                raise BrokenTar(f"byte {start}: a damaged size in an extended header")
            size = int(pax[b"size"])
        if header.type == tarfile.GNUTYPE_SPARSE or any(keyword.startswith(b"GNU.sparse") for keyword in pax):
            raise NotTar(f"byte {start}: a sparse member; pack the archive without --sparse")
        if header.type in _TYPES_WITHOUT_DATA:
            size = 0
        num_members += 1
        if num_members > max_members:
            raise NotTar(
                f"more than max_members={max_members} members", "split the shard, or raise max_members"
            )
        if source.offset + size > max_shard_bytes:
            raise NotTar(
                f"byte {start}: a member of {size} bytes takes the shard beyond max_shard_bytes={max_shard_bytes}",
                "split the shard, or raise max_shard_bytes",
            )
        raw_name = pax.get(b"path", long_name)
        if raw_name is None:
            raw_name = header.name.encode("utf-8", "surrogateescape")
        long_name, pax = None, {}

        name = raw_name.decode("utf-8", "backslashreplace")
        is_file, is_directory = header.type in _FILE_TYPES, header.type == tarfile.DIRTYPE
        yield Place(name, size, is_file, is_directory, source.offset)


def _parse_header(block: bytes, start: int) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if start > 0:
            raise BrokenTar(f"byte {start}: a damaged member header ({error})") from None
        if block.startswith(b"PAR1"):
            raise NotTar("a Parquet file", "give it a name that ends in .parquet") from None
        if block.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            raise NotTar("a zip archive", "give it a name that ends in .zip") from None
        if kind := kind_of_content(block):
            raise NotTar(f"not a tar archive but {kind.name}", kind.advice) from None
        raise NotTar(f"not a tar archive: it begins with {block[:16]!r}", "give image shards alone") from None
    if header.size < 0:
        raise BrokenTar(f"byte {start}: a member of {header.size} bytes")
    return header


def _parse_pax(payload: bytes, start: int) -> dict[bytes, bytes]:
    """The `length keyword=value` lines of a POSIX extended header."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(payload):
        match = _PAX_RECORD.match(payload, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload) or payload[end - 1] != ord("\n"):
            raise BrokenTar(f"byte {start}: a damaged extended header")
        records[match[2]] = payload[match.end() : end - 1]
        position = end
    return records


def _describe_cut(start: int, found: int, extended: bool) -> str:
    if found:
        return f"cut off at byte {start + found}, within a member header"
    if extended:
        return f"cut off at byte {start}, behind an extended header"
    return (
        f"cut off at byte {start}: there is no end-of-archive marker, so members may be missing "
        "(if you know that none are, set require_end_marker=false)"
    )


class _Source:
    """Counted reads from a stream that may return less than was asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.offset = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end of the stream."""
        parts = []
        while size > 0 and (part := self.stream.read(min(size, _CHUNK_BYTES))):
            parts.append(part)
            size -= len(part)
            self.offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_padded(self, size: int) -> bytes:
        """The data of a member, leaving the stream behind what fills its last block."""
        data = self.read(size)
        self.skip(size - len(data) + -size % BLOCK_BYTES)
        return data

    def skip(self, size: int) -> None:
        while size > 0 and (part := self.stream.read(min(size, _CHUNK_BYTES))):
            size -= len(part)
            self.offset += len(part)
        if size > 0:
            raise BrokenTar(f"cut off at byte {self.offset}, {size} bytes before the end of a member")

    def check_padding(self) -> None:
        """Read to the end of the stream. What follows the marker must be zeros, and few."""
        start = self.offset
        while part := self.stream.read(_CHUNK_BYTES):
            if any(part):
                raise BrokenTar(
                    f"data follows the end-of-archive marker at byte {start}: the file has a hole, or "
                    "archives were joined end to end (join them with tar --concatenate)"
                )
            self.offset += len(part)
        num_zeros = self.offset - start
        if num_zeros > _MAX_PADDING_BYTES:
            raise BrokenTar(f"only zeros from byte {start} on, {num_zeros} of them: the file has a hole")


class _SeekingSource(_Source):
    """Of a file that can be read at any place: what is not wanted is never read."""

    def __init__(self, file: Any, size_bytes: int) -> None:
        super().__init__(file)
        self._size_bytes = size_bytes

    def move_to(self, offset: int) -> None:
        """Go on at a byte behind. Raises BrokenTar where the file has ended by then."""
        if offset > self._size_bytes:
            raise BrokenTar(
                f"cut off at byte {self._size_bytes}, {offset - self._size_bytes} bytes before the end of a member"
            )
        self.stream.seek(offset)
        self.offset = offset
