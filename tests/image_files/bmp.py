"""BMP of every header, depth, mask, palette, direction and run-length coding."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from tests.image_files.case import SIDE, Case, alpha, few_colours, over_white, pack_bits, picture

_PLAIN, _RLE8, _RLE4, _MASKS, _ALPHA_MASKS = 0, 1, 2, 3, 6
_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def bmp(
    pixels: bytes,
    bits: int,
    *,
    header: int = 40,
    storage: int = _PLAIN,
    masks: tuple[int, int, int, int] = (0, 0, 0, 0),
    palette: np.ndarray | None = None,
    num_colours: int | None = None,
    is_top_down: bool = False,
    side: int = SIDE,
) -> bytes:
    """A file of packed rows; `palette` (n, 3) RGB, `num_colours` what the header says of it."""
    entries = (
        b""
        if palette is None
        else b"".join(bytes(c[::-1]) + (b"" if header == 12 else b"\0") for c in palette)
    )
    if header == 12:
        info = struct.pack("<IHHHH", 12, side, side, 1, bits)
    else:
        count = (0 if palette is None else len(palette)) if num_colours is None else num_colours
        height = -side if is_top_down else side
        info = struct.pack(
            "<IiiHHIIiiII", header, side, height, 1, bits, storage, len(pixels), 2835, 2835, count, 0
        )
        if header == 40 and storage == _MASKS:
            info += struct.pack("<III", *masks[:3])
        elif header == 40 and storage == _ALPHA_MASKS:
            info += struct.pack("<IIII", *masks)
        elif header in (52, 56, 108, 124):
            info += struct.pack("<IIII", *masks)[: header - 40]
            info = info.ljust(header, b"\0")
        info = info.ljust(header, b"\0")
    offset = 14 + len(info) + len(entries)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + entries + pixels


def rows_of(values: np.ndarray, bits: int, *, is_top_down: bool = False) -> bytes:
    """Values (H, W) of `bits` each, in rows filled up to four bytes, the last row first."""
    if bits >= 8:
        lines = [row.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes() for row in values]
    else:
        lines = pack_bits(values, bits)
    lines = [line + bytes(-len(line) % 4) for line in lines]
    return b"".join(lines if is_top_down else lines[::-1])


def bmp_cases() -> Iterator[Case]:
    yield from _palettes()
    yield from _colours()
    yield from _masks()
    yield from _runs()


def _palettes() -> Iterator[Case]:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for bits in (1, 2, 4, 8):
        full = 1 << bits
        kinds = [(f"{full} colours", *few_colours(full, seed=bits))]
        if bits in (4, 8):
            kinds.append(("2 colours", *few_colours(2, seed=bits)))
        # Palettes that look like no palette: black and white, and ramps of grey.
        indices, _ = few_colours(2)
        kinds.append(("black and white", indices, ramp[[0, 255]]))
        kinds.append(("white and black", indices, ramp[[255, 0]]))
        kinds.append(("dark ramp", few_colours(full)[0], ramp[:full]))
        if bits == 4:
            kinds.append(("grey ramp", few_colours(full)[0], ramp[::17]))
        for name, values, palette in kinds:
            for header in _HEADERS:
                if header == 12 and len(palette) != full:
                    continue
                for is_top_down in (False, True) if header == 40 else (False,):
                    pixels = rows_of(values, bits, is_top_down=is_top_down)
                    data = bmp(pixels, bits, header=header, palette=palette, is_top_down=is_top_down)
                    detail = f"{name}, header {header}, {'down' if is_top_down else 'up'}"
                    kind = f"palette, {bits} bits" + (
                        ", palette 0 to 15" if (name, bits) == ("dark ramp", 4) else ""
                    )
                    yield Case("BMP", kind, detail, data, palette[values].astype(float))


def _kept(masks: tuple[int, ...]) -> np.ndarray:
    """The picture as these masks hold it."""
    counts = [mask // (mask & -mask) for mask in masks[:3]]
    return np.round(picture() / 255 * counts) / counts * 255


def _packed(colours: np.ndarray, masks: tuple[int, ...], opacity: np.ndarray | None = None) -> np.ndarray:
    """Pixels of 8-bit colours under masks, rounded to what the masks hold."""
    channels = [colours[..., i] for i in range(3)] + ([opacity] if opacity is not None else [])
    out = np.zeros(colours.shape[:2], np.uint32)
    for mask, values in zip(masks, channels, strict=False):
        shift = (mask & -mask).bit_length() - 1
        most = mask >> shift
        out |= np.round(values / 255 * most).astype(np.uint32) << shift
    return out


def _colours() -> Iterator[Case]:
    normal = (0xFF0000, 0xFF00, 0xFF)
    for header in _HEADERS:
        for is_top_down in (False, True) if header != 12 else (False,):
            for bits, masks in ((16, (0x7C00, 0x3E0, 0x1F)), (24, normal), (32, normal)):
                values = _packed(picture(), masks)
                pixels = rows_of(values, bits, is_top_down=is_top_down)
                data = bmp(pixels, bits, header=header, is_top_down=is_top_down)
                detail = f"header {header}, {'down' if is_top_down else 'up'}"
                yield Case("BMP", f"RGB, {bits} bits", detail, data, _kept(masks))
    for bits in (64,):
        pixels = np.zeros((SIDE, SIDE, 8), np.uint8).tobytes()
        yield Case("BMP", "RGB, 64 bits", "header 40", bmp(pixels, bits))
    yield Case("BMP", "JPEG or PNG inside", "header 40", bmp(bytes(100), 0, storage=4))


def _masks() -> Iterator[Case]:
    layouts = [
        (16, (0xF800, 0x7E0, 0x1F, 0)),
        (16, (0x7C00, 0x3E0, 0x1F, 0)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0xF00, 0xF0, 0xF, 0)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0)),
        (32, (0xFF000000, 0xFF0000, 0xFF00, 0)),
        (32, (0xFF000000, 0xFF00, 0xFF, 0)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
        (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
    ]
    for bits, masks in layouts:
        for header in (40, 52, 56, 108, 124):
            if masks[3] and header < 56:
                continue
            for is_empty in (False, True) if masks[3] and bits == 32 else (False,):
                opacity = (np.zeros_like(alpha()) if is_empty else alpha()) if masks[3] else None
                values = _packed(picture(), masks, opacity)
                data = bmp(rows_of(values, bits), bits, header=header, storage=_MASKS, masks=masks)
                truth = _kept(masks)
                if masks[3] and not is_empty:
                    truth = over_white(truth, alpha())
                kind = f"RGB, {bits} bits, masks" + (", alpha" if masks[3] else "")
                kind += " that is all 0" if is_empty else ""
                shown_masks = "/".join(f"{mask:x}" for mask in masks)
                yield Case("BMP", kind, f"{shown_masks}, header {header}", data, truth)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    values = _packed(picture(), masks, alpha())
    data = bmp(rows_of(values, 32), 32, storage=_ALPHA_MASKS, masks=masks)
    yield Case("BMP", "RGB, 32 bits, alpha masks after a header of 40", "BI_ALPHABITFIELDS", data)


def _run_lengths(values: np.ndarray, bits: int, style: str) -> bytes:
    """Run-length codes: `runs` alone, or `literal` stretches; `skips` leaves out what is index 0."""
    out = bytearray()
    for y, row in enumerate(values[::-1]):
        x = 0
        while x < len(row):
            same = 1
            while x + same < len(row) and row[x + same] == row[x] and same < 255:
                same += 1
            if style == "skips" and row[x] == 0:
                if x + same == len(row):
                    break
                out += bytes([0, 2, same, 0])
            elif style == "literal" and len(row) - x >= 6:
                same = 6
                part = row[x : x + same]
                packed = part.tobytes() if bits == 8 else pack_bits(part[None], 4)[0]
                out += bytes([0, same]) + packed + bytes(len(packed) % 2)
            else:
                value = int(row[x]) if bits == 8 else int(row[x]) * 17
                out += bytes([same, value])
            x += same
        out += b"\0\1" if y == len(values) - 1 else b"\0\0"
    return bytes(out)


def _runs() -> Iterator[Case]:
    for bits, storage in ((8, _RLE8), (4, _RLE4)):
        for count in (2, 5, 16):
            for style in ("runs", "literal", "skips"):
                for header in (40, 108, 124):
                    indices, palette = few_colours(count, seed=count)
                    pixels = _run_lengths(indices, bits, style)
                    data = bmp(pixels, bits, header=header, storage=storage, palette=palette)
                    kind = f"run lengths, {bits} bits" + (", pixels left out" if style == "skips" else "")
                    truth = None if style == "skips" else palette[indices].astype(float)
                    yield Case("BMP", kind, f"{style}, {count} colours, header {header}", data, truth)
