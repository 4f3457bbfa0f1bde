"""What libjpeg-turbo and torch's resizing take for the centre square of JPEGs, with nothing around them: a limit of
decoding, one thread.

Entropy decoding of the whole picture, as a picture of 1/8 takes it; of the inverse transform, and all that comes behind
it, the centre square's share; resizing of a square that lies in memory as one. What the parts take is measured apart:
no wheel decodes a part of a picture.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from serve import serve

_pictures: list[bytes] = []
_kinds: list[tuple[int, int, str]] = []  # of each: height, width, simplejpeg's name of its colours


def load(folder: str) -> int:
    """Take the pictures of a folder, in the order of their names."""
    _pictures[:] = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    for picture in _pictures:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(picture, strict=False)
        _kinds.append((int(height), int(width), "GRAY" if colours == "Gray" else "RGB"))
    return len(_pictures)


def images_per_s(size: int, numbers: list[int]) -> float:
    """Of these pictures, by the processor time that the parts take."""
    squares: list[np.ndarray] = []
    entropy_s = inside_s = 0.0
    for number in numbers:
        picture, (height, width, colours) = _pictures[number], _kinds[number]
        least = _decoded_side(min(height, width), 2 * size)
        start = time.process_time()
        simplejpeg.decode_jpeg(picture, colours, min_height=1, min_width=1, strict=False)
        middle = time.process_time()
        pixels = simplejpeg.decode_jpeg(picture, colours, min_height=least, min_width=least, strict=False)
        end = time.process_time()
        square = _centre(pixels)
        entropy_s += middle - start
        inside_s += max(0.0, (end - middle) - (middle - start)) * square.size / pixels.size
        squares.append(square)
    start = time.process_time()
    for square in squares:
        image = torch.from_numpy(square)[None].permute(0, 3, 1, 2)
        F.interpolate(image, size=(size, size), mode="bicubic", antialias=True)
    return len(numbers) / (entropy_s + inside_s + time.process_time() - start)


def _decoded_side(side: int, least: int) -> int:
    """The short side at which a picture is decoded: 1/2, 1/4 or 1/8 where at least `least` is left."""
    scale = next((scale for scale in (8, 4, 2) if side // scale >= least), 1)
    return side // scale


def _centre(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(load, images_per_s)
