"""GIF: what the first frame leaves uncovered of its canvas is transparent, as browsers show it."""

from __future__ import annotations

from PIL import Image

from tatok_pipe.images.errors import unsupported_mode
from tatok_pipe.images.formats.reading import Reader, Reading, whiten_uncovered

_HEADER_BYTES = 13
_EXTENSION, _FRAME = 0x21, 0x2C


def _read(data: bytes) -> Reading:
    """Raises DecodeError where there is no colour table. What is broken is left to Pillow to explain."""
    try:
        at = _first_frame(data)
    except IndexError:
        return Reading(data)
    if at is None:
        return Reading(data)
    left, top, width, height = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (1, 3, 5, 7))
    if not (data[10] | data[at + 9]) & 0x80:
        raise unsupported_mode("a GIF without a colour table")

    def whiten(image: Image.Image) -> Image.Image:
        return whiten_uncovered(image, (left, top, left + width, top + height))

    return Reading(data, after_load=whiten)


def _first_frame(data: bytes) -> int | None:
    """Where its descriptor begins. IndexError where the file ends before."""
    at = _HEADER_BYTES + ((6 << (data[10] & 7)) if data[10] & 0x80 else 0)
    while data[at] != _FRAME:
        if data[at] != _EXTENSION:
            return None
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    return at if data[at + 9 :] else None


READER = Reader(_read)
