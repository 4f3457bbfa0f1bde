"""TIFF: what the table of kinds does not show."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

from ...image_files.case import SIDE, grey, levels, picture, shown
from ...image_files.tiff_writer import ORDERS, Layout, tiff

CONFIG = PreprocessConfig(image_size=SIDE)
PLAIN = Layout(8, 2)


def refuse(data: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, CONFIG)
    return caught.value.error, str(caught.value)


def close(data: bytes, expected: np.ndarray) -> bool:
    return np.abs(decode_image(data, CONFIG)[0] - np.asarray(expected, float)).max() <= 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_what_is_read_in_a_way_of_our_own(order, orientation):
    upright = {3: (0, 2), 6: (1, 3), 8: (3, 1)}[orientation][1]
    tags = ((0x0112, 3, (orientation,)),)
    planes = tiff(levels(picture(), 16), Layout(16, 2, order=order, is_planar=True, tags=tags))
    assert close(planes, np.rot90(picture(), upright))
    inverted = 65535 - levels(grey(), 16)
    assert close(tiff(inverted, Layout(16, 0, order=order, tags=tags)), np.rot90(shown(grey(), 8), upright))


def test_the_first_of_several_pages():
    out = io.BytesIO()
    other = Image.fromarray(picture(5))
    Image.fromarray(picture()).save(out, "TIFF", save_all=True, append_images=[other, other])
    np.testing.assert_array_equal(decode_image(out.getvalue(), CONFIG)[0], picture())


def test_nothing_is_guessed_where_a_tag_is_missing_or_cannot_be_read():
    data = tiff(picture(), PLAIN)
    entry = struct.pack("<HHI", 262, 3, 1)
    without = data.replace(entry, struct.pack("<HHI", 60000, 3, 1))
    assert refuse(without)[0] == "UnsupportedMode" and "PhotometricInterpretation" in refuse(without)[1]
    # Bits of a sample stand elsewhere, here behind the end of the file: Pillow would take them for 1.
    at = data.index(struct.pack("<HHI", 258, 3, 3)) + 8
    lost = data[:at] + struct.pack("<I", len(data) + 1000) + data[at + 4 :]
    assert refuse(lost)[0] in ("Corrupt", "Truncated")


def test_a_directory_that_is_cut_off():
    data = tiff(picture(), PLAIN)
    (start,) = struct.unpack_from("<I", data, 4)
    assert refuse(data[: start + 40]) == ("Truncated", "the TIFF ends inside its directory")


def test_refusals_say_what_the_pixels_are():
    grey_alpha = np.dstack([levels(grey(), 16)] * 2)
    assert refuse(tiff(grey_alpha, Layout(16, 1, extra=(2,)))) == (
        "UnsupportedMode",
        "a TIFF of these pixels: grey, 2 x 16 bits, extra samples 2, compression none; convert it to 8 bits a "
        "channel, grey or RGB",
    )
    old_jpeg = replace(PLAIN, encode=lambda part: b"x", compression=6)
    assert "compression old JPEG" in refuse(tiff(picture(), old_jpeg))[1]


def test_pillows_own_reason_where_it_is_pillow_that_refuses():
    data = tiff(picture(), PLAIN).replace(struct.pack("<HHI", 256, 3, 1), struct.pack("<HHI", 60001, 3, 1))
    assert refuse(data) == ("Corrupt", "SyntaxError: Missing dimensions")


def test_raw_files_of_cameras():
    data = tiff(picture(), replace(PLAIN, tags=((50706, 1, (1, 4, 0, 0)),)))
    assert refuse(data)[0] == "UnsupportedFormat"


def test_absurd_tags_make_no_long_message_and_take_no_memory():
    data = tiff(picture(), replace(PLAIN, tags=((336, 3, (0, 1)),), extra=tuple(range(3, 500))))
    at = data.index(struct.pack("<HHI", 258, 3, 3))
    data = data[:at] + struct.pack("<HHII", 258, 4, 1, 2**31) + data[at + 12 :]
    for photometric in (2, 3, 5):
        entry = struct.pack("<HHIH", 262, 3, 1, 2)
        error, message = refuse(data.replace(entry, struct.pack("<HHIH", 262, 3, 1, photometric)))
        assert error == "UnsupportedMode" and len(message) < 400
