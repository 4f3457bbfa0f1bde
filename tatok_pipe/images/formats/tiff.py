"""TIFF: a table of the pixels that come out right, and the few repairs that make more of them do so.

The first image of the file is taken. What is not in the table is refused, whatever Pillow makes of it: it takes
signed values for unsigned ones, ignores subsampling, inverted ranges and WhiteIsZero of 16 bits, and reads planes
of more than 8 bits as stripes.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFile, TiffImagePlugin

from tatok_pipe.images.errors import DecodeError, unsupported_mode
from tatok_pipe.images.formats.reading import Reader, Reading, grey16_to_grey8
from tatok_pipe.images.formats.tiff_directory import Tags, number, numbers, read_tags, with_short

_PHOTOMETRICS = {
    0: "grey, white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
# Extra samples: 1 is premultiplied alpha, 2 alpha. Of 0, "something else", most readers make alpha all the same and
# others nothing, so it is refused.
_ALPHA = ((1,), (2,))
# photometric -> bits of a sample -> what extra samples may stand behind the colours.
_TRUSTED: dict[int, dict[int, tuple[tuple[int, ...], ...]]] = {
    _WHITE_IS_ZERO: {1: ((),), 2: ((),), 4: ((),), 8: ((),), 16: ((),)},
    _GREY: {1: ((),), 2: ((),), 4: ((),), 8: ((), *_ALPHA), 12: ((),), 16: ((),)},
    _RGB: {8: ((), *_ALPHA), 16: ((), *_ALPHA)},
    _PALETTE: {1: ((),), 2: ((),), 4: ((),), 8: ((), (2,))},
    _CMYK: {8: ((),), 16: ((),)},
    _YCBCR: {8: ((),)},
    _LAB: {8: ((),)},
}
_NUM_COLOURS = {_RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_UNCOMPRESSED, _JPEG = 1, 7
_COMPRESSIONS = {
    _UNCOMPRESSED: "none",
    2: "CCITT RLE",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    _JPEG: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
_NOT_READ = {
    6: "old JPEG",
    32771: "16-bit padding",
    32809: "ThunderScan",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34676: "SGI log",
    34677: "SGI log",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_FAX = (2, 3, 4)
_JPEG_PHOTOMETRICS = (_WHITE_IS_ZERO, _GREY, _RGB, _CMYK, _YCBCR)
# photometric -> what extra samples there may be where each sample has a plane of its own.
_TRUSTED_PLANES = {_RGB: ((), (1,), (2,)), _CMYK: ((),)}
_YCBCR_COEFFICIENTS = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)

_SHORT = 3
_NUM_SHOWN = 6
# Tags, by number.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 258, 259, 262, 266
_SAMPLES, _PLANAR = 277, 284
_COLOUR_MAP, _INK_SET, _DOT_RANGE, _EXTRA, _FORMAT = 320, 332, 336, 338, 339
_COEFFICIENTS, _SUBSAMPLING, _BLACK_WHITE, _DNG_VERSION = 529, 530, 532, 50706
_MEANINGFUL = (
    _SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _COLOUR_MAP, _INK_SET, _DOT_RANGE,
    _EXTRA, _FORMAT, _COEFFICIENTS, _SUBSAMPLING, _BLACK_WHITE,
)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """How the samples of a pixel are stored."""

    photometric: int
    bits: tuple[int, ...]  # of each sample
    formats: tuple[int, ...]  # 1 unsigned, 2 signed, 3 float
    extra: tuple[int, ...]
    compression: int
    is_planar: bool
    is_reversed: bool  # the first pixel is in the lowest bit

    def __str__(self) -> str:
        names = {1: "", 2: " signed", 3: " floating-point", 5: " complex signed", 6: " complex"}
        kinds = "/".join(names.get(kind, f" undefined ({kind})") for kind in _few(self.formats))
        bits = "+".join(str(number) for number in _few(self.bits))
        parts = [
            _PHOTOMETRICS.get(self.photometric, f"photometric interpretation {self.photometric}"),
            f"{len(self.bits)} x {bits} bits{kinds}",
        ]
        if self.extra:
            parts.append("extra samples " + ",".join(str(kind) for kind in self.extra[:_NUM_SHOWN]))
        if self.is_planar:
            parts.append("in planes")
        if self.is_reversed:
            parts.append("fill order 2")
        known = _COMPRESSIONS | _NOT_READ
        parts.append(f"compression {known.get(self.compression, self.compression)}")
        return f"a TIFF of these pixels: {', '.join(parts)}"


def _few(values: tuple[int, ...]) -> list[int]:
    """Those that differ, but not more than a message should hold."""
    return list(dict.fromkeys(values))[:_NUM_SHOWN]


def _read(data: bytes) -> Reading:
    """Raises DecodeError for pixels that are not in the table. A broken directory is left to Pillow to explain."""
    if data[:4] == b"MM\0+":
        raise unsupported_mode("a BigTIFF with its highest bytes first")
    tags = read_tags(data, _MEANINGFUL)
    if tags is None:
        return Reading(data)
    layout = _read_layout(tags, data)
    _check_trusted(layout)
    _check_meaning(tags, layout)
    bits, white_is_zero = layout.bits[0], layout.photometric == _WHITE_IS_ZERO
    needs_libtiff = layout.is_planar and layout.compression == _UNCOMPRESSED
    is_small_map = layout.photometric == _PALETTE and max(numbers(tags, _COLOUR_MAP)) < 256

    def after_load(image: Image.Image) -> Image.Image:
        if layout.photometric in (_WHITE_IS_ZERO, _GREY) and bits > 8:
            return grey16_to_grey8(image, white=(1 << bits) - 1, is_inverted=white_is_zero)
        if is_small_map:
            _set_small_map(image, numbers(tags, _COLOUR_MAP))
        return image

    # Of the other byte order Pillow knows no WhiteIsZero of 16 bits.
    is_patched = white_is_zero and bits == 16
    if is_patched and tags.tagtype.get(_PHOTOMETRIC) != _SHORT:
        raise DecodeError("Corrupt", "PhotometricInterpretation of the TIFF is not a SHORT")
    return Reading(
        with_short(data, _PHOTOMETRIC, _GREY) if is_patched else data,
        before_load=_read_by_libtiff if needs_libtiff else None,
        after_load=after_load,
    )


def _read_layout(tags: Tags, data: bytes) -> _Layout:
    if _DNG_VERSION in tags or data[8:10] == b"CR":
        raise DecodeError("UnsupportedFormat", "a camera's raw file; convert it to JPEG or PNG")
    kind = number(tags, _SUBFILE, 0)
    if kind & 5:
        what = "a smaller copy of another" if kind & 1 else "a transparency mask"
        raise unsupported_mode(f"a TIFF whose first image is {what}")
    if _PHOTOMETRIC not in tags:
        raise unsupported_mode("a TIFF that does not say what its samples mean (PhotometricInterpretation)")
    num_samples = number(tags, _SAMPLES, 1)
    bits = numbers(tags, _BITS, (1,))
    if not 1 <= num_samples <= 64:
        raise unsupported_mode(f"a TIFF of {num_samples} samples a pixel")
    bits = bits * num_samples if len(bits) == 1 else bits[:num_samples]
    if len(bits) != num_samples:
        raise DecodeError(
            "Corrupt", f"the TIFF has {num_samples} samples a pixel, and bits for {len(bits)} of them"
        )
    return _Layout(
        photometric=number(tags, _PHOTOMETRIC, 0),
        bits=tuple(int(number) for number in bits),
        formats=tuple(int(number) for number in numbers(tags, _FORMAT, (1,))),
        extra=tuple(int(number) for number in numbers(tags, _EXTRA)),
        compression=number(tags, _COMPRESSION, 1),
        is_planar=number(tags, _PLANAR, 1) == 2 and num_samples > 1,
        is_reversed=number(tags, _FILL_ORDER, 1) == 2,
    )


def _check_meaning(tags: Tags, layout: _Layout) -> None:
    """What else may change what the samples mean."""
    if layout.photometric == _CMYK:
        if number(tags, _INK_SET, 1) != 1:
            raise unsupported_mode("a TIFF of other inks than CMYK")
        dots = numbers(tags, _DOT_RANGE, (0, (1 << layout.bits[0]) - 1))
        if dots[:2] != (0, (1 << layout.bits[0]) - 1):
            raise unsupported_mode(
                f"a CMYK TIFF with a dot range of {dots[0]} to {dots[1] if len(dots) > 1 else '?'}"
            )
    if layout.photometric == _PALETTE and len(numbers(tags, _COLOUR_MAP)) != 3 << layout.bits[0]:
        raise DecodeError("Corrupt", f"the TIFF's palette has not 3 x {1 << min(layout.bits[0], 16)} values")
    if layout.photometric == _YCBCR and layout.compression == _UNCOMPRESSED:
        factors = [float(value) for value in numbers(tags, _COEFFICIENTS, _YCBCR_COEFFICIENTS)]
        is_usual = len(factors) == 3 and all(
            abs(a - b) < 1e-3 for a, b in zip(factors, _YCBCR_COEFFICIENTS, strict=True)
        )
        levels = tuple(float(value) for value in numbers(tags, _BLACK_WHITE, _FULL_RANGE))
        if numbers(tags, _SUBSAMPLING, (2, 2)) != (1, 1) or not is_usual or levels != _FULL_RANGE:
            raise unsupported_mode(
                "an uncompressed YCbCr TIFF with subsampling, or not of JPEG's range and coefficients"
            )


def _check_trusted(layout: _Layout) -> None:
    bits, compression = layout.bits[0], layout.compression
    photometric = layout.photometric
    num_colours = _NUM_COLOURS.get(photometric, 1)
    extra = layout.extra
    if photometric == _RGB and not extra and len(layout.bits) == 4:
        extra = (2,)  # a fourth sample of which the file does not speak is alpha, as most readers take it
    is_trusted = (
        set(layout.bits) == {bits}
        and set(layout.formats) == {1}
        and extra in _TRUSTED.get(photometric, {}).get(bits, ())
        and len(layout.bits) == num_colours + len(extra)
        and compression in _COMPRESSIONS
        and (compression not in _FAX or bits == 1)
        and (compression != _JPEG or (bits == 8 and photometric in _JPEG_PHOTOMETRICS))
        and (not layout.is_planar or layout.extra in _trusted_planes(layout))
        and (not layout.is_reversed or (bits == 1 and photometric in (_WHITE_IS_ZERO, _GREY)))
    )
    if not is_trusted:
        raise unsupported_mode(str(layout))


def _trusted_planes(layout: _Layout) -> tuple[tuple[int, ...], ...]:
    if len(layout.bits) != _NUM_COLOURS.get(layout.photometric, 1) + len(layout.extra):
        return ()  # a sample of which the file does not speak, which Pillow drops
    return _TRUSTED_PLANES.get(layout.photometric, ())


def _read_by_libtiff(image: ImageFile.ImageFile) -> None:
    """Uncompressed planes: Pillow's own reader takes those of 16 bits for 8, and premultiplied colours for plain."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    width, height = image._tile_size
    deep = image.tag_v2[_BITS][0] == 16
    image.use_load_libtiff = True
    rawmode = f"{image.mode};16N" if deep else image.mode
    image.tile = [ImageFile._Tile("libtiff", (0, 0, width, height), 0, (rawmode, False, image.tag_v2.offset))]


def _set_small_map(image: Image.Image, values: tuple) -> None:
    """A palette of values up to 255, where the standard says 65535: old software wrote such, and readers know it."""
    count = len(values) // 3
    image.putpalette(
        bytes(int(values[channel * count + index]) for index in range(count) for channel in range(3))
    )


READER = Reader(_read)
