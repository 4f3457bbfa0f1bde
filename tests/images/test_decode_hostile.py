"""Refusals: from any bytes decode_image makes pixels of the right shape, or a DecodeError that says why."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.formats import png
from tatok_pipe.images.formats.table import NAMES
from tatok_pipe.images.options import PreprocessConfig

from ..image_files.all import all_cases

CONFIG = PreprocessConfig(image_size=16)
ERRORS = {
    "EmptyFile",
    "NotAnImage",
    "UnsupportedFormat",
    "UnsupportedMode",
    "Truncated",
    "Corrupt",
    "TooManyPixels",
    "TooManyBytes",
    "OutOfMemory",
}
Image.init()  # SAVE has all of its formats from then on
OPTIONS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 90}, "TIFF": {"compression": "tiff_lzw"}}


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@cache
def valid(format: str) -> bytes:
    if format not in Image.SAVE:
        return next(case.data for case in all_cases() if case.format == format)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), format, **OPTIONS.get(format, {}))


def refuse(data: bytes, config: PreprocessConfig = CONFIG) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, config)
    return caught.value.error, str(caught.value)


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


@contextmanager
def little_memory(limit_kib: int = 50_000) -> Iterator[None]:
    """The block may not need more than this at its worst moment. Checks nothing where there is no /proc."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        yield
        return
    reset.write_text("5")  # peak := now
    before = memory_kib("VmRSS")
    yield
    assert memory_kib("VmHWM") - before < limit_kib


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc")
def test_little_memory_notices():
    with pytest.raises(AssertionError), little_memory():
        bytes(bytearray(100_000_000))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_bit_png(width: int, height: int, packed: bytes, *, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


@cache
def deflated_zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 9)


def test_no_bytes():
    assert refuse(b"") == ("EmptyFile", "the image has 0 bytes")


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch /tmp/x) system\n",  # would run Ghostscript
        b"%PDF-1.7\n",
        b"\0",
        b"\xff\xd8",
        bytes(1000),
    ],
)
def test_what_is_no_image_says_how_it_begins(data):
    error, message = refuse(data)
    assert error == "NotAnImage"
    assert message.startswith(f"begins with {data[:16]!r}; expected JPEG, PNG")


@pytest.mark.parametrize("format", NAMES)
def test_every_cut_is_refused_unless_all_pixels_are_there(format):
    whole = valid(format)
    expected, _, _ = decode_image(whole, CONFIG)
    refused = []
    for cut in range(1, len(whole), max(1, len(whole) // 150)):
        try:
            pixels, _, _ = decode_image(whole[:cut], CONFIG)
        except DecodeError as error:
            refused.append(error.error)
        else:  # a format may end in bytes that carry no pixels
            np.testing.assert_array_equal(pixels, expected)
    assert len(refused) > 100
    assert set(refused) <= {"NotAnImage", "Truncated", "Corrupt"}
    if format != "TIFF":  # whose directory comes last, so that a cut leaves no image at all
        assert refused.count("Truncated") > 0.7 * len(refused)


def test_truncated_jpeg_without_its_last_byte():
    assert refuse(valid("JPEG")[:-1])[0] == "Truncated"


def test_truncated_images_stay_refused_when_the_process_would_load_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode_image(valid("JPEG"), CONFIG)


def test_pixel_bomb_is_refused_by_its_header():
    bomb = one_bit_png(12000, 12000, deflated_zeros(12000 * 1501))
    assert len(bomb) < 25_000
    assert refuse(bomb) == ("TooManyPixels", "12000x12000 = 144000000 pixels, more than max_pixels=64000000")
    assert refuse(one_bit_png(2**31 - 1, 2**31 - 1, b""))[0] == "TooManyPixels"


def test_the_pixel_cap_is_exact_and_counts_the_whole_image():
    data = encode(Image.new("L", (100, 50)), "PNG")
    decode_image(data, PreprocessConfig(image_size=16, max_pixels=5000))
    assert refuse(data, PreprocessConfig(image_size=16, max_pixels=4999))[0] == "TooManyPixels"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "BMP", "TIFF", "JPEG", "PPM"])
def test_huge_declared_size_takes_no_memory(format):
    data = {
        "GIF": lambda: valid("GIF")[:6] + b"\xff\xff\xff\xff" + valid("GIF")[10:],
        "WEBP": lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + b"VP8L\0\0\0\0",
        "BMP": lambda: valid("BMP")[:18] + struct.pack("<ii", 60000, 60000) + valid("BMP")[26:],
        "TIFF": lambda: encode(Image.new("1", (20000, 20000)), "TIFF", compression="group4"),
        "JPEG": lambda: encode(Image.new("L", (16000, 4200)), "JPEG", quality=1),
        "PPM": lambda: b"P6 65000 65000 255\n",
    }[format]()
    with little_memory():
        error, message = refuse(data)
    assert error == "TooManyPixels", message


def test_pixels_beyond_the_declared_size_are_not_inflated():
    bomb = one_bit_png(8, 1, deflated_zeros(100_000_000))
    started = time.thread_time()
    with little_memory():
        pixels, width, height = decode_image(bomb, CONFIG)
    assert (width, height) == (8, 1) and not pixels.any()
    assert time.thread_time() - started < 0.2


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_metadata_bombs(kind, monkeypatch):
    monkeypatch.setattr(png, "MAX_INFLATED_BYTES", 100_000)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    pixels = zlib.compress(bytes(2))
    for num_bytes in (100_001, 10_000_000):
        with little_memory():
            error, message = refuse(
                one_bit_png(8, 1, pixels, extra=png_chunk(kind, head + deflated_zeros(num_bytes)))
            )
        assert error == "TooManyBytes" and "too large" in message and kind.decode() in message
    halves = png_chunk(kind, head + deflated_zeros(50_000))
    decode_image(one_bit_png(8, 1, pixels, extra=halves + halves), CONFIG)
    assert refuse(one_bit_png(8, 1, pixels, extra=halves * 3))[0] == "TooManyBytes"


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("value", [0, 200, 70_000])
def test_pixels_without_a_known_white_are_refused_whatever_they_are(dtype, value):
    error, message = refuse(encode(Image.fromarray(np.full((9, 9), value, dtype)), "TIFF"))
    kind = "floating-point" if dtype is np.float32 else "signed"
    assert error == "UnsupportedMode" and f"grey, 1 x 32 bits {kind}" in message and "convert it" in message


def test_header_that_lies_about_the_format():
    assert refuse(b"\x89PNG\r\n\x1a\n" + valid("JPEG"))[0] in {"Corrupt", "Truncated"}
    assert refuse(b"BM, as in any text")[0] in {"Corrupt", "Truncated"}


@settings(max_examples=300, deadline=None)
@given(
    format=st.sampled_from(NAMES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damage_never_escapes(format, edits, cut):
    data = bytearray(valid(format))
    for place, value in edits:
        data[int(place**3 * len(data))] = value  # headers are hit more often than pixels
    data = bytes(data[: max(1, int(len(data) * cut))]) if cut < 0.5 else bytes(data)
    outcomes = []
    for _ in range(2):
        try:
            pixels, width, height = decode_image(data, CONFIG)
            assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
            assert width >= 1 and height >= 1
            outcomes.append(pixels.tobytes())
        except DecodeError as error:
            assert error.error in ERRORS
            assert "\n" not in str(error) and " at 0x" not in str(error) and 0 < len(str(error)) < 400
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@settings(max_examples=200, deadline=None)
@given(
    signature=st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6 "]
    ),
    rest=st.binary(max_size=200),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_garbage_behind_a_signature(signature, rest):
    try:
        decode_image(signature + rest, CONFIG)
    except DecodeError as error:
        assert error.error in ERRORS


def test_text_of_a_png_does_no_harm():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 1000, zip=True)
    data = encode(Image.new("RGB", (9, 9), "red"), "PNG", pnginfo=info)
    assert decode_image(data, CONFIG)[0][0, 0].tolist() == [255, 0, 0]
