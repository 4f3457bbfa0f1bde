"""GIF: palettes, transparency, interlacing, and frames that cover a part of the canvas."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.image_files.case import SIDE, Case, few_colours


def _codes(indices: np.ndarray, count: int) -> bytes:
    """A frame's compressed pixels, as sub-blocks with the code size before them: Pillow's own."""
    image = Image.fromarray(indices, "P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, (count, 3), dtype=np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, "GIF", optimize=False, interlace=0)
    data = out.getvalue()
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, *indices.shape[::-1]))
    flags = data[at + 9]
    return data[at + 10 + ((6 << (flags & 7)) if flags & 0x80 else 0) : data.rindex(b";")]


def gif(
    frames: list[tuple[np.ndarray, int, int]],
    palette: np.ndarray,
    *,
    side: int = SIDE,
    table: str = "global",
    transparent: int | None = None,
    is_interlaced: bool = False,
    background: int = 0,
    version: bytes = b"GIF89a",
) -> bytes:
    """Frames (indices, left, top) on a canvas."""
    bits = max(1, (len(palette) - 1).bit_length())
    colours = palette.tobytes() + bytes(3 * ((1 << bits) - len(palette)))
    has_global = table in ("global", "both")
    out = version + struct.pack("<HHBBB", side, side, (0x80 if has_global else 0) | bits - 1, background, 0)
    if has_global:
        out += colours if table == "global" else bytes(255 - c for c in colours)
    for indices, left, top in frames:
        if transparent is not None or len(frames) > 1:
            flags = 1 if transparent is not None else 0
            out += b"!\xf9\x04" + struct.pack("<BHBB", flags, 10, transparent or 0, 0)
        height, width = indices.shape
        flags = (0x40 if is_interlaced else 0) | ((0x80 | bits - 1) if table in ("local", "both") else 0)
        out += b"," + struct.pack("<HHHHB", left, top, width, height, flags)
        out += colours if table in ("local", "both") else b""
        order = [y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step)]
        out += _codes(indices[order] if is_interlaced else indices, max(2, len(palette)))
    return out + b";"


def gif_cases() -> Iterator[Case]:
    for count in (2, 3, 16, 200, 256):
        indices, palette = few_colours(count, seed=count)
        shows = palette[indices].astype(float)
        for table in ("global", "local", "both"):
            for is_interlaced in (False, True):
                for transparent in (None, 0, count - 1):
                    data = gif(
                        [(indices, 0, 0)],
                        palette,
                        table=table,
                        is_interlaced=is_interlaced,
                        transparent=transparent,
                    )
                    truth = shows.copy()
                    if transparent is not None:
                        truth[indices == transparent] = 255
                    kind = "palette" + (", one colour transparent" if transparent is not None else "")
                    detail = f"{count} colours, table {table}, interlaced {is_interlaced:d}, {transparent}"
                    yield Case("GIF", kind, detail, data, truth)
    yield from _parts()
    indices, palette = few_colours(16)
    yield Case("GIF", "without a colour table", "", gif([(indices, 0, 0)], palette, table="none"))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for count in (2, 16, 256):
        for version in (b"GIF87a", b"GIF89a"):
            indices, _ = few_colours(count)
            data = gif([(indices, 0, 0)], ramp[:count], version=version)
            yield Case(
                "GIF", "palette", f"{count} greys, {version.decode()}", data, ramp[indices].astype(float)
            )


def _parts() -> Iterator[Case]:
    """The first frame covers a part of the canvas."""
    for count in (4, 16, 256):
        indices, palette = few_colours(count, seed=count)
        for left, top, width, height in ((5, 4, 20, 21), (0, 0, 20, 37), (17, 0, 20, 37), (0, 30, 37, 7)):
            part = indices[top : top + height, left : left + width]
            for transparent in (None, 1):
                for num_frames in (1, 3):
                    for table in ("global", "local"):
                        frames = [(part, left, top)] + [(indices, 0, 0)] * (num_frames - 1)
                        data = gif(frames, palette, transparent=transparent, table=table, background=2)
                        truth = np.full((SIDE, SIDE, 3), 255.0)
                        shows = palette[part].astype(float)
                        if transparent is not None:
                            shows[part == transparent] = 255
                        truth[top : top + height, left : left + width] = shows
                        detail = f"{width}x{height}+{left}+{top}, {count} colours, {num_frames} frames, {transparent}"
                        covered = (left, top, left + width, top + height)
                        kind = "first frame covers a part"
                        yield Case("GIF", kind, f"{detail}, {table}", data, truth, covered)
