"""PNG: which chunks count, and what a broken one does."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

from ...image_files.case import SIDE, picture
from ...image_files.png import SIGNATURE, chunk, png

RGB = 2
CONFIG = PreprocessConfig(image_size=SIDE)


def refuse(data: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, CONFIG)
    return caught.value.error, str(caught.value)


def insert(data: bytes, before: bytes, *chunks: bytes) -> bytes:
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


def swapped_profile(num_more: int = 0) -> bytes:
    """sRGB with red and green exchanged, and so many bytes more."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"-XYZ").replace(b"gXYZ", b"rXYZ").replace(b"-XYZ", b"gXYZ")
    more = np.random.default_rng(0).bytes(num_more)
    return struct.pack(">I", len(profile) + len(more)) + profile[4:] + more


def test_megabytes_of_text_are_no_harm():
    text = b'{"node": 1} ' * 1_000_000
    extra = (
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(text)),
        chunk(b"tEXt", b"plain\0" + text[:2_000_000]),
    )
    pixels, _, _ = decode_image(png(picture(), 8, RGB, *extra), CONFIG)
    np.testing.assert_array_equal(pixels, picture())


@pytest.mark.parametrize("num_more", [0, 3_000_000])
def test_a_profile_of_any_reasonable_size_is_applied(num_more):
    extra = chunk(b"iCCP", b"a scanner\0\0" + zlib.compress(swapped_profile(num_more)))
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    pixels, _, _ = decode_image(png(red, 8, RGB, extra), PreprocessConfig(image_size=8))
    assert np.abs(pixels.astype(int) - (0, 255, 0)).max() <= 4


@pytest.mark.parametrize("kind", [b"iCCP", b"eXIf", b"tRNS"])
def test_an_ancillary_chunk_with_a_wrong_checksum_is_as_if_it_were_not_there(kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    body = {
        b"iCCP": b"x\0\0" + zlib.compress(swapped_profile()),
        b"eXIf": exif.tobytes()[6:],
        b"tRNS": struct.pack(">3H", *picture()[0, 0]),
    }[kind]
    right, _, _ = decode_image(png(picture(), 8, RGB, chunk(kind, body)), CONFIG)
    wrong, _, _ = decode_image(png(picture(), 8, RGB, chunk(kind, body, is_right=False)), CONFIG)
    np.testing.assert_array_equal(wrong, picture())
    assert (right != wrong).any()


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_exif_counts_before_and_behind_the_pixels(before):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = insert(png(picture(), 8, RGB), before, chunk(b"eXIf", exif.tobytes()[6:]))
    np.testing.assert_array_equal(decode_image(data, CONFIG)[0], picture()[::-1, ::-1])


def test_transparency_behind_the_pixels_or_before_the_palette_is_ignored():
    data = insert(png(picture(), 8, RGB), b"IEND", chunk(b"tRNS", struct.pack(">3H", *picture()[0, 0])))
    np.testing.assert_array_equal(decode_image(data, CONFIG)[0], picture())
    palette = chunk(b"PLTE", bytes([200, 100, 50] * 2))
    indices = np.zeros((9, 9), np.uint8)
    data = png(indices, 8, 3, chunk(b"tRNS", b"\0"), palette)
    assert decode_image(data, PreprocessConfig(image_size=9))[0][0, 0].tolist() == [200, 100, 50]


def test_the_first_of_several_counts():
    red, blue = (chunk(b"PLTE", bytes(colour)) for colour in ((255, 0, 0), (0, 0, 255)))
    data = png(np.zeros((9, 9), np.uint8), 8, 3, red, blue)
    assert decode_image(data, PreprocessConfig(image_size=9))[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_critical_chunk_with_a_wrong_checksum_is_refused(kind):
    data = bytearray(png(np.zeros((9, 9), np.uint8), 8, 3, chunk(b"PLTE", bytes(6))))
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    assert refuse(bytes(data)) == ("Corrupt", f"the checksum of the PNG's {kind.decode()} chunk is wrong")


def test_chunks_that_change_what_a_file_means_are_refused():
    plain = png(picture(), 8, RGB)
    unknown = insert(plain, b"IDAT", chunk(b"FOOB", b"x"))
    assert refuse(unknown)[0] == "UnsupportedMode" and "FOOB" in refuse(unknown)[1]
    phone = insert(plain, b"IHDR", chunk(b"CgBI", bytes(4)))
    assert refuse(phone)[0] == "UnsupportedMode" and "Apple" in refuse(phone)[1]


def test_headers_and_palettes_that_cannot_be():
    assert refuse(png(np.zeros((9, 9), np.uint8), 8, 3))[0] == "Corrupt"
    header = struct.pack(">IIBBBBB", 9, 9, 4, 2, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    assert refuse(data) == (
        "Corrupt",
        "no PNG has 4 bits of colour type 2, compression 0, filter 0, interlace 0",
    )


def test_a_file_may_end_behind_its_pixels_but_not_before():
    whole = png(picture(), 8, RGB, chunk(b"tEXt", b"k\0" + b"x" * 500))
    end = whole.index(b"IEND") - 4
    np.testing.assert_array_equal(decode_image(whole[:end], CONFIG)[0], picture())
    assert refuse(whole[: end - 1]) == ("Truncated", "the PNG ends inside its IDAT chunk")
    assert refuse(whole[: whole.index(b"IDAT") - 100])[0] == "Truncated"
