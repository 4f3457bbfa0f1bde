"""WebP: what the first frame of an animation leaves uncovered of its canvas is transparent, as in every format."""

from __future__ import annotations

from PIL import Image

from tatok_pipe.images.formats.reading import Reader, Reading, whiten_uncovered

_HEADER_BYTES = 12


def _read(data: bytes) -> Reading:
    at = _HEADER_BYTES
    while at + 24 <= len(data) and data[at : at + 4] != b"ANMF":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    if at + 24 > len(data):
        return Reading(data)
    left, top, width, height = (int.from_bytes(data[at + i : at + i + 3], "little") for i in (8, 11, 14, 17))
    covered = (2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1)

    def whiten(image: Image.Image) -> Image.Image:
        return whiten_uncovered(image, covered)

    return Reading(data, after_load=whiten)


def _ends_early(data: bytes) -> bool:
    """Whether the file says that it is longer."""
    return int.from_bytes(data[4:8], "little") + 8 > len(data)


READER = Reader(_read, ends_early=_ends_early)
