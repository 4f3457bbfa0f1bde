"""QOI: three and four channels, both colour spaces, every operation, and a run at the very beginning."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np

from tests.image_files.case import SIDE, Case, alpha, few_colours, grey, over_white, picture

_END = bytes(7) + b"\1"


def _file(operations: bytes, channels: int, colours: int) -> bytes:
    return b"qoif" + struct.pack(">IIBB", SIDE, SIDE, channels, colours) + operations + _END


def _one_by_one(values: np.ndarray) -> bytes:
    """Every pixel with all its channels."""
    code = b"\xfe" if values.shape[2] == 3 else b"\xff"
    return b"".join(code + pixel.tobytes() for pixel in values.reshape(-1, values.shape[2]))


def _encoded(values: np.ndarray, colours: int) -> bytes:
    data = bytearray(imagecodecs.qoi_encode(np.ascontiguousarray(values)))
    data[13] = colours
    return bytes(data)


def qoi_cases() -> Iterator[Case]:
    indices, palette = few_colours(8)
    pictures = {"smooth": picture(), "grey": np.dstack([grey()] * 3), "few colours": palette[indices]}
    for colours in (0, 1):
        space = "linear" if colours else "sRGB"
        for name, values in pictures.items():
            layers = np.dstack([values, alpha()])
            truth = over_white(values, alpha())
            for how, write in (("as usual", _encoded), ("one by one", None)):
                detail = f"{name}, {space}, {how}"
                three = write(values, colours) if write else _file(_one_by_one(values), 3, colours)
                yield Case("QOI", "RGB", detail, three, values)
                four = write(layers, colours) if write else _file(_one_by_one(layers), 4, colours)
                yield Case("QOI", "RGB and alpha", detail, four, truth)
            yield Case("QOI", "RGB, alpha that is not shown", f"{name}, {space}",
                       _file(_one_by_one(layers), 3, colours), values)  # fmt: skip
        for length in (1, 2, 62):
            # black, white, and then black again by its place in the index, (255 * 11) % 64
            rest = SIDE * SIDE - length
            body = bytes([0xC0 + length - 1]) + (b"\xfe\xff\xff\xff\x35" * rest)[: 5 * (rest // 2)]
            body += b"\x35" if rest % 2 else b""
            truth = np.zeros((SIDE * SIDE, 3))
            truth[length : length + 2 * (rest // 2) : 2] = 255
            for channels in (3, 4):
                yield Case("QOI", "begins with a run", f"{length}, {channels} channels, {space}",
                           _file(body, channels, colours), truth.reshape(SIDE, SIDE, 3))  # fmt: skip
