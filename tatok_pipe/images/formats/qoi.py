"""QOI: what Pillow makes of it is right, but that a run at the very beginning is not remembered."""

from __future__ import annotations

from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.reading import Reader, Reading

_HEADER_BYTES = 14
_CHANNELS_AT = 12
_RUN, _LONGEST_RUN = 0xC0, 62
_OPAQUE_BLACK = b"\xff\0\0\0\xff"  # as a pixel with all its channels, what a run at the beginning repeats


def _read(data: bytes) -> Reading:
    """Raises DecodeError for headers that contradict the format. What is cut off is left to Pillow to explain."""
    if len(data) < _HEADER_BYTES:
        raise DecodeError("Truncated", f"{len(data)} bytes, less than the header of a QOI")
    channels, colours = data[_CHANNELS_AT : _CHANNELS_AT + 2]
    if channels not in (3, 4) or colours > 1:
        raise DecodeError("Corrupt", f"no QOI has {channels} channels and colour space {colours}")
    return Reading(_with_first_pixel(data))


def _with_first_pixel(data: bytes) -> bytes:
    """The file with the first pixel of a leading run written out, so that an index can refer to it."""
    start, rest = data[:_HEADER_BYTES], data[_HEADER_BYTES:]
    if not rest or not _RUN <= rest[0] < _RUN + _LONGEST_RUN:
        return data
    run = bytes([rest[0] - 1]) if rest[0] > _RUN else b""
    return start + _OPAQUE_BLACK + run + rest[1:]


READER = Reader(_read)
