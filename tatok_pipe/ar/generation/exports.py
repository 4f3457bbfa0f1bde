"""What is made of a finished run besides its images: one sheet of them, and the array that evaluators read."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.lib import format as npy
from PIL import Image

_GAP_PIXELS = 4
_BACKGROUND = (24, 24, 24)


def encode_image(pixels: np.ndarray, image_format: str) -> bytes:
    """Pixels (S, S, 3) uint8 as a PNG or WebP file, without loss."""
    buffer = io.BytesIO()
    if image_format == "webp":
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    else:
        Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode(image: bytes) -> np.ndarray:
    """An encoded image as (S, S, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def contact_sheet(images: Sequence[bytes], labels: Sequence[int | None]) -> bytes:
    """At least one image, with its class, as a PNG: a row a class where there are several of every class, else row by
    row in a grid that is about square."""
    classes = dict.fromkeys(labels)
    if 1 < len(classes) <= len(images) // 2:
        rows = [
            [image for image, label in zip(images, labels, strict=True) if label == each] for each in classes
        ]
    else:
        columns = math.ceil(math.sqrt(len(images)))
        rows = [list(images[start : start + columns]) for start in range(0, len(images), columns)]
    pictures = [[Image.open(io.BytesIO(image)).convert("RGB") for image in row] for row in rows]
    width, height = (side + _GAP_PIXELS for side in pictures[0][0].size)
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * width + _GAP_PIXELS, len(rows) * height + _GAP_PIXELS), _BACKGROUND)
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            sheet.paste(picture, (column * width + _GAP_PIXELS, row * height + _GAP_PIXELS))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def write_npz(
    path: str | os.PathLike[str], images: Iterable[bytes], *, num_images: int, image_size: int
) -> None:
    """All images as `arr_0`, (n, S, S, 3) uint8, which ADM's evaluator reads (arXiv 2105.05233). One after the
    other: 50,000 of 256 pixels are 9.8 GB."""
    shape = (num_images, image_size, image_size, 3)
    header = {"descr": npy.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    member = zipfile.ZipInfo("arr_0.npy")  # its time is that of all members without one
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open(member, "w", force_zip64=True) as file,
    ):
        npy.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        count = 0
        for image in images:
            pixels = decode(image)
            if pixels.shape != shape[1:]:
                raise ValueError(f"image {count} is {pixels.shape}, expected {shape[1:]}")
            file.write(pixels.tobytes())
            count += 1
    if count != num_images:
        raise ValueError(f"{count} images, expected {num_images}")
