"""The directory of a TIFF's first image: its tags, as numbers, and where they stand in the file."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator

from PIL import TiffImagePlugin

from tatok_pipe.images.errors import DecodeError

Tags = TiffImagePlugin.ImageFileDirectory_v2


def read_tags(data: bytes, meaningful: Iterable[int]) -> Tags | None:
    """The tags of the first image; None where they are too broken to be read. Raises DecodeError where the file ends
    inside them, or one of the `meaningful` ones cannot be read."""
    stream = io.BytesIO(data)
    try:
        tags = Tags(stream.read(16 if _is_big(data) else 8))
        stream.seek(tags.next)
        tags.load(stream)
        entries = dict(_entries(data))
    except DecodeError:
        raise
    except Exception:  # Pillow raises almost anything on garbage, and will do so again
        return None
    # Pillow passes over what it cannot read, as if it were not there.
    for tag in meaningful:
        if tag in entries and tag not in tags:
            raise DecodeError("Corrupt", f"tag {tag} of the TIFF cannot be read")
    return tags


def numbers(tags: Tags, tag: int, default: tuple = ()) -> tuple:
    """The value of a tag, always as a tuple, of numbers only."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(number, (int, float, TiffImagePlugin.IFDRational)) for number in values):
        raise DecodeError("Corrupt", f"tag {tag} of the TIFF does not hold numbers")
    return values or default


def number(tags: Tags, tag: int, default: int) -> int:
    return int(numbers(tags, tag, (default,))[0])


def with_short(data: bytes, tag: int, value: int) -> bytes:
    """The file with another SHORT for a tag that it has."""
    at = next(at for number, at in _entries(data) if number == tag) + (12 if _is_big(data) else 8)
    return data[:at] + struct.pack("<H" if data[:2] == b"II" else ">H", value) + data[at + 2 :]


def _entries(data: bytes) -> Iterator[tuple[int, int]]:
    """Every tag of the first directory, and where its entry is. Raises DecodeError where the file ends before it."""
    order, is_big = ("<" if data[:2] == b"II" else ">"), _is_big(data)
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    first, size = (start + 8, 20) if is_big else (start + 2, 12)
    if first + count * size > len(data):
        raise DecodeError("Truncated", "the TIFF ends inside its directory")
    for at in range(first, first + count * size, size):
        yield struct.unpack_from(order + "H", data, at)[0], at


def _is_big(data: bytes) -> bool:
    """Whether it is a BigTIFF."""
    return 43 in data[2:4]
