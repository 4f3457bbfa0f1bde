"""Pixels: what comes out of images that are as they should be, whatever their format, mode and metadata."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import pytest
import simplejpeg
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from tatok_pipe.images.decode import decode_image, decoder_version
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.srgb import is_srgb
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
REAL_SHARD = Path(__file__).parents[3] / "shared/data/imagenet-sample/000000.tar"


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(data: bytes, size: int = 16) -> np.ndarray:
    pixels, _, _ = decode_image(data, PreprocessConfig(image_size=size))
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    return pixels


def smooth_noise(width: int, height: int, seed: int = 0, cells: int = 24) -> Image.Image:
    """Something like a photograph: no two places alike, neighbours similar, a little grain."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + random.integers(-4, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


def reference_crop(upright: Image.Image, size: int) -> np.ndarray:
    """The same crop by the long way: convert everything, cut, then resize."""
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def max_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9))


def assert_solid(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 0) -> None:
    assert max_difference(pixels, np.broadcast_to(np.array(colour), pixels.shape)) <= tolerance, pixels[0, 0]


@pytest.mark.parametrize("size", [(37, 52), (52, 37), (40, 40)])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"speed": 10}),
    ],
)
def test_orientation_is_exactly_that_of_exif_transpose(format, options, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth_noise(*size), format, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (upright.size != size) == (orientation >= 5 and size[0] != size[1])

    side = min(size)  # the crop is not scaled, so every pixel has to be equal
    pixels, width, height = decode_image(data, PreprocessConfig(image_size=side))
    assert (width, height) == upright.size
    np.testing.assert_array_equal(pixels, reference_crop(upright, side))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_with_scaling(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth_noise(301, 203), "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    # The edges may differ: there one has neighbours outside the crop, the other has none.
    assert max_difference(decode(data, 120)[3:-3, 3:-3], reference_crop(upright, 120)[3:-3, 3:-3]) <= 2


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_in_xmp_alone_is_ignored(format):
    image = smooth_noise(52, 37)
    options: dict = {"xmp": XMP}
    if format == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif format == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    data = encode(image, format, **options)
    with Image.open(io.BytesIO(data)) as opened:  # Pillow alone would turn it
        assert opened.getexif()[0x0112] == 6
    plain = encode(image, format)
    assert decode_image(data, PreprocessConfig(image_size=16))[1:] == (52, 37)
    np.testing.assert_array_equal(decode(data), decode(plain))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_is_no_exif(exif):
    image = smooth_noise(40, 30)
    np.testing.assert_array_equal(decode(encode(image, "JPEG", exif=exif)), decode(encode(image, "JPEG")))


def test_draft_keeps_the_quality():
    data = encode(smooth_noise(1500, 1130, cells=200), "JPEG", quality=90)
    pixels = decode(data, 128)
    reference = reference_crop(Image.open(io.BytesIO(data)), 128)
    assert max_difference(pixels, reference) > 0  # else the draft was not used, and this tests nothing
    assert psnr(pixels, reference) > 42


@pytest.mark.skipif(not REAL_SHARD.exists(), reason=f"no photographs of ImageNet at {REAL_SHARD}")
def test_photographs_of_imagenet_match_the_long_way():
    with open(REAL_SHARD, "rb") as shard:
        samples = list(islice(read_samples(shard, shard="real"), 25))
    check_against_the_long_way([sample.image for sample in samples if isinstance(sample, ImageSample)])


def test_photographs_in_wheels_match_the_long_way():
    check_against_the_long_way([crop.image for crop in held_out_crops()[:25]])


def check_against_the_long_way(images):
    assert len(images) == 25
    for data in images:
        source = Image.open(io.BytesIO(data))
        pixels, width, height = decode_image(data, PreprocessConfig(image_size=128))
        assert {width, height} == set(source.size)
        if "icc_profile" not in source.info:
            assert psnr(pixels, reference_crop(ImageOps.exif_transpose(source), 128)) > 38


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_extreme_shapes(format, size):
    image = Image.new("RGB", size, WHITE)
    x, y = size[0] // 2, size[1] // 2  # the middle, with as much around it as interpolation may look at
    image.paste((60, 60, 60), (x - 20, y - 20, x + 20, y + 20))
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    pixels, width, height = decode_image(encode(image, format, **options), PreprocessConfig(image_size=16))
    assert (width, height) == size
    assert_solid(pixels, (60, 60, 60), tolerance=3 if format == "JPEG" else 0)


def test_cmyk_jpeg_with_and_without_adobes_marker():
    inks = Image.new("CMYK", (48, 32), (255, 0, 0, 0))  # full cyan
    data = encode(inks, "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    assert b"Adobe" not in plain
    assert_solid(decode(data), (0, 255, 255), tolerance=3)
    assert_solid(decode(plain), (0, 255, 255), tolerance=3)
    assert_solid(decode(encode(Image.new("CMYK", (48, 32), (0, 0, 0, 255)), "JPEG")), (0, 0, 0), tolerance=3)


def halves(mode: str, left, right, size: int = 40) -> Image.Image:
    image = Image.new(mode, (size, size), left)
    image.paste(right, (size // 2, 0, size, size))
    return image


def assert_halves(pixels: np.ndarray, left, right, tolerance: int = 1) -> None:
    assert_solid(pixels[:, :6], left, tolerance)
    assert_solid(pixels[:, -6:], right, tolerance)


def palette_image() -> Image.Image:
    image = halves("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(format):
    assert_halves(decode(encode(palette_image(), format)), RED, BLUE)


@pytest.mark.parametrize(
    ("format", "transparency", "left"),
    [
        ("PNG", 0, WHITE),
        ("PNG", bytes([0, 255]), WHITE),
        ("PNG", bytes([128, 255]), (255, 127, 127)),
        ("GIF", 0, WHITE),
    ],
)
def test_palette_with_transparency(format, transparency, left):
    assert_halves(decode(encode(palette_image(), format, transparency=transparency)), left, BLUE)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_one_bit(format):
    assert_halves(decode(encode(halves("1", 0, 1), format)), (0, 0, 0), WHITE)


def test_grey_and_alpha():
    assert_halves(decode(encode(halves("L", 20, 200), "PNG")), (20, 20, 20), (200, 200, 200))
    assert_halves(decode(encode(halves("LA", (20, 255), (0, 0)), "PNG")), (20, 20, 20), WHITE)


@pytest.mark.parametrize(
    ("mode", "key", "left"), [("L", 20, WHITE), ("RGB", (20, 20, 20), WHITE), ("1", 0, WHITE)]
)
def test_colour_key_of_a_png_is_transparent(mode, key, left):
    colours = (0, 1) if mode == "1" else (key, 200 if mode == "L" else (200, 200, 200))
    right = WHITE if mode == "1" else (200, 200, 200)
    assert_halves(decode(encode(halves(mode, *colours), "PNG", transparency=key)), left, right)


def test_alpha_over_white_without_a_fringe():
    # Transparent black beside opaque red: averaging before premultiplying would bring the black in.
    alpha = np.asarray(smooth_noise(90, 90, seed=1).convert("L"))
    colour = np.asarray(smooth_noise(90, 90, seed=2)) * (alpha[..., None] > 100)
    source = np.dstack([colour, np.where(alpha > 100, alpha, 0)]).astype(np.uint8)
    weight = source[..., 3:] / 255
    flat = Image.fromarray((source[..., :3] * weight + 255 * (1 - weight)).round().astype(np.uint8))
    expected = np.asarray(flat.resize((32, 32), Image.Resampling.BICUBIC))
    for format, options in [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})]:
        assert max_difference(decode(encode(Image.fromarray(source), format, **options), 32), expected) <= 1


def ramp16() -> np.ndarray:
    return np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "TIFF big-endian", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    if format == "PPM":
        data = b"P5 32 32 65535\n" + ramp16().astype(">u2").tobytes()
    elif format == "TIFF big-endian":
        data = tiff(ramp16().astype(">u2").tobytes(), bits=16, order=">")
    else:
        data = encode(Image.fromarray(ramp16()), format)
    assert Image.open(io.BytesIO(data)).mode == {"PPM": "I", "TIFF big-endian": "I;16B"}.get(format, "I;16")
    expected = np.round(ramp16() / 257).astype(int)
    np.testing.assert_array_equal(decode(data, 32), np.repeat(expected[..., None], 3, axis=-1))


def test_16_bit_grey_with_a_transparent_value():
    data = encode(Image.fromarray(np.full((8, 8), 1000, np.uint16)), "PNG")
    assert_solid(decode(data), (4, 4, 4))
    at = data.index(b"IDAT") - 4
    chunk = b"tRNS" + struct.pack(">H", 1000)
    keyed = data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    assert_solid(decode(keyed), WHITE)


def tiff(pixels: bytes, *, bits: int, order: str, side: int = 32) -> bytes:
    """A grey TIFF of one strip, written by hand: Pillow writes neither big-endian nor 12-bit ones."""
    entries = [(256, side), (257, side), (258, bits), (259, 1), (262, 1), (273, 8 + 2 + 12 * 9 + 4), (277, 1)]
    entries += [(278, side), (279, len(pixels))]
    directory = struct.pack(order + "H", len(entries))
    for tag, value in entries:
        directory += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "I", 8) + directory + bytes(4) + pixels


def test_12_bit_tiff_reaches_white():
    packed = bytes([0xFF, 0xFF, 0xFF]) * (32 * 32 // 2)
    assert_solid(decode(tiff(packed, bits=12, order="<")), WHITE)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format):
    frames = [halves("RGB", RED, BLUE), Image.new("RGB", (40, 40), GREEN), Image.new("RGB", (40, 40), WHITE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert_halves(decode(data), RED, BLUE)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK"])
def test_other_colour_spaces(mode):
    source = halves("RGB", (200, 60, 30), (20, 90, 160))
    assert_halves(decode(encode(source.convert(mode), "TIFF")), (200, 60, 30), (20, 90, 160), tolerance=4)


def swapped_profile() -> bytes:
    """sRGB with the red and the green primary exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile.count(b"rXYZ") == profile.count(b"gXYZ") == 1
    return profile.replace(b"rXYZ", b"-XYZ").replace(b"gXYZ", b"rXYZ").replace(b"-XYZ", b"gXYZ")


def linear_grey_profile() -> bytes:
    """The least an ICC profile for grey needs: a D50 white point and a tone curve, here the identity."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    offset = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", offset, len(white), b"kTRC", offset + len(white), len(curve))
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(white) + len(curve), b"\0" * 4, 0x02100000, b"mntr", b"GRAY", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + tags + white + curve


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_icc_profile_is_applied(format):
    image = Image.new("RGB", (32, 32), RED)
    assert_solid(decode(encode(image, format)), RED, tolerance=3)
    assert_solid(decode(encode(image, format, icc_profile=swapped_profile())), GREEN, tolerance=4)


def test_pixels_with_a_profile_of_srgb_stay_as_they_are():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = smooth_noise(40, 40, seed=0)
    for profile in (srgb, srgb + b" with another hash"):
        assert is_srgb(profile)
        np.testing.assert_array_equal(
            decode(encode(image, "PNG", icc_profile=profile), 40), np.asarray(image)
        )
    assert not is_srgb(swapped_profile())
    assert is_srgb(None) and is_srgb(b"garbage" * 40)  # nothing is known, or can be read


def test_icc_profile_of_grey():
    image = Image.new("L", (32, 32), 55)  # 55/255 linear is 128/255 in sRGB
    for mode in ("L", "LA"):
        data = encode(image.convert(mode), "PNG", icc_profile=linear_grey_profile())
        assert_solid(decode(data), (128, 128, 128), tolerance=1)
    assert_solid(decode(encode(image, "PNG", icc_profile=swapped_profile())), (55, 55, 55), tolerance=1)


@pytest.mark.parametrize("profile", [b"garbage" * 40, swapped_profile()[:200], linear_grey_profile()])
def test_icc_profile_that_is_broken_or_of_another_space_is_ignored(profile):
    image = smooth_noise(40, 32)
    data = encode(image, "PNG", icc_profile=profile)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile
    np.testing.assert_array_equal(decode(data), decode(encode(image, "PNG")))


def test_same_pixels_from_every_thread():
    profile = swapped_profile()
    images = [encode(smooth_noise(300 + i, 260, seed=i), "JPEG", icc_profile=profile) for i in range(4)]
    images += [encode(smooth_noise(90, 70 + i, seed=i).quantize(64), "GIF") for i in range(4)]
    images += [encode(smooth_noise(90, 70 + i, seed=i).convert("LAB"), "TIFF") for i in range(2)]
    alone = [decode(data, 64) for data in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, images * 8, [64] * len(images) * 8))
    for index, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[index % len(images)])


def test_result_is_writable_and_contiguous():
    pixels = decode(encode(smooth_noise(40, 30), "PNG"))
    assert pixels.flags.writeable and pixels.flags.c_contiguous


def test_decoder_version_names_the_libraries():
    torch_version = torch.__version__.split("+")[0]
    avif_version = features.version_module("avif")
    jpeg = f"simplejpeg-{simplejpeg.__version__}"
    expected = f"pillow-{PIL.__version__}/{jpeg}/avif-{avif_version}/torch-{torch_version}/box-bicubic"
    libraries, _, number = decoder_version().rpartition("-")
    assert libraries == expected and int(number) >= 4


@pytest.mark.parametrize("fields", [{"image_size": 0}, {"max_pixels": 0}, {"max_pixels": 10**9}])
def test_config_refuses(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.*expected 1 to"):
        PreprocessConfig(**fields)
