"""TIFF over all that its tags can say of pixels, written by hand: no writer will write most of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms

from tests.image_files.case import (
    SIDE,
    Case,
    alpha,
    few_colours,
    grey,
    levels,
    over_white,
    picture,
    shown,
)
from tests.image_files.tiff_writer import (
    COMPRESS,
    DEFLATE,
    JPEG,
    LZMA,
    LZW,
    NONE,
    OLD_DEFLATE,
    ORDERS,
    PACKBITS,
    SHAPES,
    WEBP,
    ZSTD,
    Layout,
    tiff,
)


@dataclass(frozen=True)
class _Pixels:
    """A kind of pixels, and what it shows."""

    kind: str
    values: np.ndarray
    truth: np.ndarray | None
    layout: Layout


def tiff_cases() -> Iterator[Case]:
    for pixels in (*_greys(), *_colours(), *_palettes(), *_others()):
        for layout in _layouts(pixels):
            kind = _kind(pixels.kind, layout)
            detail = str(layout) if kind == pixels.kind else f"{pixels.kind}, {layout}"
            yield Case("TIFF", kind, detail, tiff(pixels.values, layout), pixels.truth)
    yield from _subsampled()
    yield from _jpegs()
    yield from _webps()
    yield from _faxes()
    yield from _by_other_writers()


def _kind(kind: str, layout: Layout) -> str:
    """Of pixels, unless they are stored in a way that is a kind of its own."""
    if layout.is_big and layout.order == ">":
        return "BigTIFF with its highest bytes first (MM)"
    if layout.fill_order == 2:
        is_bilevel = layout.bits == 1 and layout.photometric in (0, 1)
        return f"the first pixel in the lowest bits (fill order 2), {'grey, 1 bit' if is_bilevel else 'all others'}"
    return kind


def _layouts(pixels: _Pixels) -> Iterator[Layout]:
    """Every way to store these pixels."""
    base = pixels.layout
    num_samples = pixels.values.shape[2] if pixels.values.ndim == 3 else 1
    can_predict = base.bits in (8, 16, 32) and base.sample_format == 1
    for order in ORDERS:
        for is_planar in (False, True) if num_samples > 1 else (False,):
            for compression in (NONE, LZW, DEFLATE, PACKBITS):
                stored = replace(base, order=order, is_planar=is_planar, compression=compression)
                yield stored
                yield replace(stored, rows=10)
                yield replace(stored, tile=16)
                if compression in (LZW, DEFLATE) and can_predict:
                    yield replace(stored, predictor=2, rows=16)
    yield replace(base, is_big=True)
    yield replace(base, order=">", is_big=True, compression=LZW)
    for compression in (OLD_DEFLATE, LZMA, ZSTD):
        yield replace(base, compression=compression)
    yield replace(base, fill_order=2)
    yield replace(base, fill_order=2, compression=LZW)


def _greys() -> Iterator[_Pixels]:
    for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32):
        values = levels(grey(), bits)
        yield _Pixels(f"grey, {bits} bits", values, shown(values, bits), Layout(bits, 1))
        inverted = (2**bits - 1 - values.astype(np.int64)).astype(values.dtype)
        yield _Pixels(f"grey, white is zero, {bits} bits", inverted, shown(values, bits), Layout(bits, 0))
    for bits, dtype in ((8, np.int8), (16, np.int16), (32, np.int32)):
        values = levels(grey(), bits - 1).astype(dtype)
        yield _Pixels(f"grey, {bits} bits signed", values, None, Layout(bits, 1, sample_format=2))
    for bits, dtype in ((16, np.float16), (32, np.float32), (64, np.float64)):
        values = (grey() / 255).astype(dtype)
        yield _Pixels(f"grey, {bits} bits floating-point", values, None, Layout(bits, 1, sample_format=3))
    yield from (pixels for bits in (8, 16) for pixels in _with_alpha("grey", grey(), bits, 1))


def _colours() -> Iterator[_Pixels]:
    for bits in (4, 8, 16, 32):
        values = levels(picture(), bits)
        yield _Pixels(f"RGB, {bits} bits", values, shown(values, bits), Layout(bits, 2))
    floats = (picture() / 255).astype(np.float32)
    yield _Pixels("RGB, 32 bits floating-point", floats, None, Layout(32, 2, sample_format=3))
    signed = levels(picture(), 7).astype(np.int8)
    yield _Pixels("RGB, 8 bits signed", signed, None, Layout(8, 2, sample_format=2))
    yield from (pixels for bits in (8, 16) for pixels in _with_alpha("RGB", picture(), bits, 2))
    for bits in (8, 16):
        inks = levels(255 - np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)]), bits)
        yield _Pixels(f"CMYK, {bits} bits", inks, picture(), Layout(bits, 5))
        spare = np.dstack([inks, inks[..., 0]])
        kind = f"CMYK, {bits} bits, another sample"
        yield _Pixels(kind, spare, picture(), Layout(bits, 5, extra=(0,)))
    inks = 255 - np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)])
    yield _Pixels("CMYK, inverted range", 255 - inks, None, Layout(8, 5, tags=((336, 3, (255, 0)),)))
    yield _Pixels("other inks", inks, None, Layout(8, 5, tags=((332, 3, (2,)),)))


def _with_alpha(name: str, colours: np.ndarray, bits: int, photometric: int) -> Iterator[_Pixels]:
    values, opacity = levels(colours, bits), levels(alpha(), bits)
    white = 2.0**bits - 1
    covered = over_white(shown(values, bits), opacity / white * 255)
    scaled = values.astype(float) * (opacity / white if values.ndim == 2 else (opacity / white)[..., None])
    premultiplied = np.round(scaled).astype(values.dtype)
    kind = f"{name}, {bits} bits"
    for extra, stored, truth in (
        ((0,), values, shown(values, bits)),
        ((1,), premultiplied, covered),
        ((2,), values, covered),
    ):
        what = {0: "another sample", 1: "premultiplied alpha", 2: "alpha"}[extra[0]]
        yield _Pixels(
            f"{kind}, {what}", np.dstack([stored, opacity]), truth, Layout(bits, photometric, extra)
        )
    yield _Pixels(
        f"{kind}, a sample of which it does not speak",
        np.dstack([values, opacity]),
        covered if photometric == 2 else None,
        Layout(bits, photometric),
    )


def _palettes() -> Iterator[_Pixels]:
    for bits in (1, 2, 4, 8):
        indices, palette = few_colours(1 << bits, seed=bits)
        for kind, scale in (("palette", 257), ("palette of 8-bit values", 1)):
            colours = tuple(int(value) * scale for value in palette.T.reshape(-1))
            layout = Layout(bits, 3, tags=((320, 3, colours),))
            yield _Pixels(f"{kind}, {bits} bits", indices, palette[indices].astype(float), layout)
    indices, palette = few_colours(256, seed=8)
    colours = tuple(int(value) * 257 for value in palette.T.reshape(-1))
    with_alpha = np.dstack([indices, alpha()])
    truth = palette[indices].astype(float)
    for extra, shows in ((0, truth), (2, over_white(truth, alpha()))):
        kind = f"palette, 8 bits, {'alpha' if extra else 'another sample'}"
        yield _Pixels(kind, with_alpha, shows, Layout(8, 3, extra=(extra,), tags=((320, 3, colours),)))
    big, wide = few_colours(256, seed=8)
    colours = tuple(int(value) * 257 for value in np.resize(wide, (65536, 3)).T.reshape(-1))
    yield _Pixels(
        "palette, 16 bits", big.astype(np.uint16), truth, Layout(16, 3, tags=((320, 3, colours),), rows=20)
    )


def _others() -> Iterator[_Pixels]:
    ycbcr = np.asarray(Image.fromarray(picture()).convert("YCbCr"))
    full = ((530, 3, (1, 1)), (532, 5, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)))
    yield _Pixels("YCbCr, 8 bits, not subsampled", ycbcr, picture(), Layout(8, 6, tags=full))
    video = (full[0], (532, 5, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)))
    scaled = (ycbcr.astype(float) - (0, 128, 128)) * (219 / 255, 224 / 255, 224 / 255) + (16, 128, 128)
    narrow = np.round(scaled).astype(np.uint8)
    yield _Pixels("YCbCr, 8 bits, range of video", narrow, picture(), Layout(8, 6, tags=video))
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    # As an array Pillow's a and b are signed, as CIELab's are in TIFF; ICCLab's begin at -128.
    signed = np.array(ImageCms.applyTransform(Image.fromarray(picture()), to_lab))
    lab = signed ^ np.array([0, 128, 128], np.uint8)
    yield _Pixels("CIELab, 8 bits", signed, picture(), Layout(8, 8))
    yield _Pixels("CIELab, 16 bits", signed.astype(np.uint16) * 257, None, Layout(16, 8))
    yield _Pixels("ICCLab, 8 bits", lab, None, Layout(8, 9))
    yield _Pixels("ITULab, 8 bits", lab, None, Layout(8, 10))
    yield _Pixels("a transparency mask", levels(grey(), 1), None, Layout(1, 4, tags=((254, 4, (4,)),)))
    yield _Pixels("a smaller copy comes first", picture(), None, Layout(8, 2, tags=((254, 4, (1,)),)))
    yield _Pixels("a colour filter array (camera raw)", grey(), None, Layout(8, 32803))
    yield _Pixels("a camera's DNG", picture(), None, Layout(8, 2, tags=((50706, 1, (1, 4, 0, 0)),)))


def _subsampled() -> Iterator[Case]:
    """YCbCr without JPEG, whose colours are stored once for several pixels."""
    ycbcr = np.asarray(Image.fromarray(picture()).convert("YCbCr"))
    for across, down in ((2, 1), (2, 2), (4, 2)):
        for compression in (NONE, LZW, DEFLATE):
            for order in ORDERS:
                for is_told in (True, False) if (across, down) == (2, 2) else (True,):

                    def encode(
                        part: np.ndarray,
                        across: int = across,
                        down: int = down,
                        compression: int = compression,
                    ) -> bytes:
                        height, width = part.shape[:2]
                        padded = np.pad(
                            part, ((0, -height % down), (0, -width % across), (0, 0)), mode="edge"
                        )
                        units = padded.reshape(len(padded) // down, down, -1, across, 3).transpose(
                            0, 2, 1, 3, 4
                        )
                        lights = units[..., 0].reshape(*units.shape[:2], -1)
                        colours = np.round(units[..., 1:].mean(axis=(2, 3)))
                        return COMPRESS[compression](np.dstack([lights, colours]).astype(np.uint8).tobytes())

                    tags = ((530, 3, (across, down)),) if is_told else ()
                    layout = Layout(
                        8, 6, order=order, compression=compression, rows=16, tags=tags, encode=encode
                    )
                    detail = f"{across} x {down}, told {is_told:d}, {layout}"
                    stored = "compressed" if compression > NONE else "uncompressed"
                    data = tiff(ycbcr, layout)
                    # As readers show it that do not interpolate colours.
                    whole = np.repeat(
                        np.repeat(_units(ycbcr, across, down)[..., 1:].mean((2, 3)), down, 0), across, 1
                    )
                    shows = np.dstack([ycbcr[..., 0], np.round(whole[:SIDE, :SIDE])]).astype(np.uint8)
                    truth = np.asarray(Image.fromarray(shows, "YCbCr").convert("RGB"))
                    yield Case("TIFF", f"YCbCr, 8 bits, subsampled, {stored}", detail, data, truth)


def _units(values: np.ndarray, across: int, down: int) -> np.ndarray:
    """(rows, columns, down, across, 3): pixels by the block that shares its colours."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((0, -height % down), (0, -width % across), (0, 0)), mode="edge")
    return padded.reshape(len(padded) // down, down, -1, across, 3).transpose(0, 2, 1, 3, 4)


def _jpegs() -> Iterator[Case]:
    """JPEG inside TIFF, each strip or tile with tables of its own."""
    inks = 255 - np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)])
    kinds = [
        ("grey", grey(), grey_truth(), 1, {"colorspace": "GRAYSCALE"}, ()),
        ("RGB", picture(), picture(), 2, {"colorspace": "RGB", "outcolorspace": "RGB"}, ()),
        ("CMYK", inks, picture(), 5, {"colorspace": "CMYK", "outcolorspace": "CMYK"}, ()),
    ]
    for subsampling, factors in (("444", (1, 1)), ("422", (2, 1)), ("420", (2, 2))):
        options = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": subsampling}
        kinds.append((f"YCbCr {subsampling}", picture(), picture(), 6, options, ((530, 3, factors),)))
    for name, values, truth, photometric, options, tags in kinds:
        for order in ORDERS:
            for rows, tile in SHAPES:

                def encode(part: np.ndarray, options: dict = options) -> bytes:
                    part = part[..., 0] if part.shape[2] == 1 else part
                    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(part), level=98, **options))

                layout = Layout(
                    8,
                    photometric,
                    order=order,
                    compression=JPEG,
                    tags=tags,
                    encode=encode,
                    rows=rows,
                    tile=tile,
                )
                yield Case("TIFF", f"{name}, 8 bits, JPEG", str(layout), tiff(values, layout), truth)


def grey_truth() -> np.ndarray:
    return shown(grey(), 8)


def _webps() -> Iterator[Case]:
    for rows, tile in SHAPES:
        layout = Layout(
            8,
            2,
            compression=WEBP,
            encode=lambda part: bytes(imagecodecs.webp_encode(part, lossless=True)),
            rows=rows,
            tile=tile,
        )
        yield Case("TIFF", "RGB, 8 bits, WebP", str(layout), tiff(picture(), layout), picture())


def _faxes() -> Iterator[Case]:
    bilevel = levels(grey(), 1)
    for name in ("tiff_ccitt", "group3", "group4"):
        out = io.BytesIO()
        Image.fromarray(bilevel * 255).convert("1", dither=Image.Dither.NONE).save(
            out, "TIFF", compression=name
        )
        yield Case("TIFF", "grey, 1 bit, fax", f"{name}, by Pillow", out.getvalue(), shown(bilevel, 1))


def _by_other_writers() -> Iterator[Case]:
    """The same by tifffile and by Pillow, whose habits are others."""
    shapes: tuple[dict[str, Any], ...] = ({}, {"tile": (16, 16)}, {"rowsperstrip": 7}, {"bigtiff": True})
    for bits in (8, 16):
        values = levels(picture(), bits)
        for planar in ("contig", "separate"):
            stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
            for order in ORDERS:
                for compression in (None, "zlib", "lzw"):
                    for shape in shapes:
                        out = io.BytesIO()
                        tifffile.imwrite(
                            out, stored, photometric="rgb", planarconfig=planar, byteorder=order,
                            compression=compression, **shape,
                        )  # fmt: skip
                        layout = Layout(bits, 2, order=order, is_big="bigtiff" in shape)
                        detail = f"by tifffile, {planar}, {order}, {compression}, {shape or 'plain'}"
                        kind = _kind(f"RGB, {bits} bits", layout)
                        detail += f", {bits} bits" if layout.is_big else ""
                        yield Case("TIFF", kind, detail, out.getvalue(), shown(values, bits))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
            image = (
                Image.fromarray(levels(grey(), 16))
                if mode == "I;16"
                else Image.fromarray(picture()).convert(mode)
            )
            if mode in ("LA", "RGBA"):
                image.putalpha(Image.fromarray(alpha()))
            out = io.BytesIO()
            image.save(out, "TIFF", compression=compression)
            yield Case("TIFF", f"as Pillow writes {mode}", compression, out.getvalue())
