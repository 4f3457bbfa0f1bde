"""PBM, PGM and PPM: what Pillow makes of them is right, but for grey of more than 8 bits."""

from __future__ import annotations

from PIL import Image

from tatok_pipe.images.formats.reading import Reader, Reading, grey16_to_grey8


def _read(data: bytes) -> Reading:
    return Reading(data, after_load=_to_8_bits)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow scales every maximum above 255 to 65535."""
    return grey16_to_grey8(image) if image.mode.startswith("I") else image


READER = Reader(_read)
