"""BMP: what the table of kinds does not show."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

from ...image_files.bmp import bmp, rows_of
from ...image_files.case import SIDE, few_colours, picture

CONFIG = PreprocessConfig(image_size=SIDE)
RLE8 = 1
ROW = bytes([SIDE, 1])


def refuse(data: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, CONFIG)
    return caught.value.error, str(caught.value)


@pytest.mark.parametrize(
    "runs",
    [
        (ROW + b"\0\0") * (SIDE - 1) + bytes([SIDE - 1, 1]) + b"\0\1",  # the last row is short
        (ROW + b"\0\0") * (SIDE - 1) + b"\0\1",  # the last row is missing
        b"\0\0" + (ROW + b"\0\0") * (SIDE - 1) + b"\0\1",  # the first row is empty
        (ROW + b"\0\0") * 3 + b"\0\2\0\1" + (ROW + b"\0\0") * (SIDE - 4) + b"\0\1",  # a row is jumped over
        bytes([SIDE + 1, 1]) + b"\0\0" + (ROW + b"\0\0") * (SIDE - 1) + b"\0\1",  # a row is too long
    ],
)
def test_runs_that_leave_pixels_out(runs):
    palette = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    error, message = refuse(bmp(runs, 8, storage=RLE8, palette=palette))
    assert error == "UnsupportedMode" and "leave pixels out" in message
    whole = (ROW + b"\0\0") * (SIDE - 1) + ROW + b"\0\1"
    pixels, _, _ = decode_image(bmp(whole, 8, storage=RLE8, palette=palette), CONFIG)
    assert (pixels == (0, 255, 0)).all()


def test_runs_that_are_cut_off():
    palette = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    assert refuse(bmp((ROW + b"\0\0") * 5, 8, storage=RLE8, palette=palette))[0] == "Truncated"


@pytest.mark.parametrize("size", [13, 16, 63, 65, 200, 2**31])
def test_headers_of_other_sizes(size):
    data = bytearray(bmp(rows_of(few_colours(2)[0], 8), 8, palette=few_colours(2)[1]))
    data[14:18] = size.to_bytes(4, "little")
    error, message = refuse(bytes(data))
    assert error == ("UnsupportedMode" if size < 64 else "Corrupt") and f"a header of {size} bytes" in message


def test_a_file_that_is_cut_off():
    values = picture().astype(np.uint32)
    packed = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
    data = bmp(rows_of(packed, 24), 24)
    np.testing.assert_array_equal(decode_image(data, CONFIG)[0], picture())
    for cut in (15, 20, 30, 53, 60, len(data) - 2):
        assert refuse(data[:cut])[0] in ("Truncated", "Corrupt")
