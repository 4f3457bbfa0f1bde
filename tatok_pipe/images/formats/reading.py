"""What a format's own module finds out about a file before Pillow is given it.

Pillow loads more than it understands: of some kinds of files it drops a part that changes the picture, and says
nothing. So every format has a module that reads the headers, refuses what it does not trust, and says what is to be
done beside Pillow's decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

Covered = tuple[int, int, int, int]  # left, top, right, bottom, in stored pixels


@dataclass(frozen=True)
class Reading:
    """How a file is read. Both steps get images in stored pixels, before EXIF orientation."""

    data: bytes  # what Pillow opens: the file, or the part of it that decides the picture
    profile: bytes | None = None  # ICC, where Pillow is not given it
    before_load: Callable[[ImageFile.ImageFile], None] | None = None
    after_load: Callable[[Image.Image], Image.Image] | None = None


@dataclass(frozen=True)
class Reader:
    """What a module knows of its format."""

    read: Callable[[bytes], Reading] = Reading  # raises DecodeError
    ends_early: Callable[[bytes], bool] | None = None  # whether a file says that it is longer, where files do
    version: Callable[[], str] | None = None  # of what decides the pixels beside Pillow


def whiten_uncovered(image: Image.Image, covered: Covered) -> Image.Image:
    """White where the first frame of an animation leaves its canvas as it is: transparent, as everywhere white."""
    left, top, right, bottom = covered
    if left <= 0 and top <= 0 and right >= image.width and bottom >= image.height:
        return image
    layer = image.convert("RGBA").crop(covered)
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(layer, (left, top), mask=layer)
    return canvas


def grey16_to_grey8(
    image: Image.Image, *, white: int = 65535, is_inverted: bool = False, transparent: int | None = None
) -> Image.Image:
    """The range from black to `white` scaled to 8 bits (Pillow's conversion clips at 255), the `transparent` value
    white."""
    levels = np.minimum(np.arange(65536, dtype=np.int64), white)
    table = ((levels * 255 + white // 2) // white).astype(np.uint8)
    if is_inverted:
        table = 255 - table
    if transparent is not None:
        table[transparent] = 255
    return Image.fromarray(table[np.asarray(image)])
