"""The table of formats: who looks at a file before Pillow does. A new format is a module of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tatok_pipe.images.formats.avif import read_avif
from tatok_pipe.images.formats.bmp import read_bmp
from tatok_pipe.images.formats.gif import read_gif
from tatok_pipe.images.formats.png import read_png
from tatok_pipe.images.formats.ppm import read_ppm
from tatok_pipe.images.formats.reading import Reading
from tatok_pipe.images.formats.tiff import read_tiff
from tatok_pipe.images.formats.webp import read_webp

READERS: dict[str, Callable[[bytes], Reading]] = {
    "JPEG": Reading,
    "PNG": read_png,
    "WEBP": read_webp,
    "GIF": read_gif,
    "BMP": read_bmp,
    "TIFF": read_tiff,
    "PPM": read_ppm,
    "AVIF": read_avif,
}
