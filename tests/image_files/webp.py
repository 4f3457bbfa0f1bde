"""WebP: lossless and lossy, alpha, and animations whose first frame covers a part of the canvas."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.image_files.case import SIDE, Case, alpha, grey, over_white, picture


def _encode(values: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "WEBP", **options)
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def webp_animation(frames: list[tuple[np.ndarray, int, int]], *, has_alpha: bool, background: int) -> bytes:
    """Frames (pixels, left, top) on a canvas; left and top are even."""
    body = _chunk(b"VP8X", bytes([0x02 | (0x10 if has_alpha else 0), 0, 0, 0]) + _u24(SIDE - 1) * 2)
    body += _chunk(b"ANIM", struct.pack("<IH", background, 0))
    for values, left, top in frames:
        height, width = values.shape[:2]
        still = _encode(values, lossless=True, exact=True)
        head = _u24(left // 2) + _u24(top // 2) + _u24(width - 1) + _u24(height - 1) + _u24(100) + b"\0"
        body += _chunk(b"ANMF", head + still[12:])
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_cases() -> Iterator[Case]:
    covered = over_white(picture(), alpha())
    transparent = np.dstack([picture(), alpha()])
    for quality in (80, 90, 100):
        for method in (0, 2, 4, 6):
            for lossless in (False, True):
                name = "lossless" if lossless else "lossy"
                options = {"quality": quality, "method": method, "lossless": lossless}
                detail = f"quality {quality}, method {method}"
                opaque = _encode(picture(), **options)
                yield Case("WEBP", f"RGB, {name}", detail, opaque, picture() if lossless else None)
                one = _encode(transparent, **options, exact=True)
                yield Case("WEBP", f"RGB and alpha, {name}", detail, one, covered if lossless else None)
                single = _encode(np.dstack([grey()] * 3), **options)
                yield Case("WEBP", f"RGB, {name}", f"grey, {detail}", single)
    for left, top, width, height in ((4, 6, 20, 21), (0, 0, 20, 37), (16, 0, 21, 37), (0, 0, 37, 37)):
        for has_alpha in (False, True):
            for background in (0, 0xFF0000FF, 0xFFFFFFFF):
                whole = transparent if has_alpha else picture()
                part = whole[top : top + height, left : left + width]
                frames = [(part, left, top), (np.ascontiguousarray(whole[::-1]), 0, 0)]
                data = webp_animation(frames, has_alpha=has_alpha, background=background)
                truth = np.full((SIDE, SIDE, 3), 255.0)
                shows = covered if has_alpha else picture()
                truth[top : top + height, left : left + width] = shows[
                    top : top + height, left : left + width
                ]
                kind = "animation" if width == SIDE else "animation whose first frame covers a part"
                detail = f"{width}x{height}+{left}+{top}, alpha {has_alpha:d}, background {background:08x}"
                yield Case("WEBP", kind, detail, data, truth, (left, top, left + width, top + height))
