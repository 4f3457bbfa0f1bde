"""AVIF: depth, subsampling, alpha."""

from __future__ import annotations

import io
from collections.abc import Iterator

import imagecodecs
import numpy as np
from PIL import Image

from tests.image_files.case import Case, alpha, grey, levels, over_white, picture, shown


def avif_cases() -> Iterator[Case]:
    transparent = np.dstack([picture(), alpha()])
    covered = over_white(picture(), alpha())
    for quality in (90, 100):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for range_ in ("full", "limited"):
                for values, truth, name in (
                    (picture(), picture(), "RGB"),
                    (transparent, covered, "RGB and alpha"),
                ):
                    out = io.BytesIO()
                    Image.fromarray(values).save(
                        out, "AVIF", quality=quality, subsampling=subsampling, range=range_, speed=8
                    )
                    detail = f"quality {quality}, {subsampling}, {range_}"
                    yield Case("AVIF", f"{name}, 8 bits", detail, out.getvalue(), truth)
        out = io.BytesIO()
        Image.fromarray(grey()).save(out, "AVIF", quality=quality, speed=8)
        yield Case("AVIF", "grey, 8 bits", f"quality {quality}", out.getvalue(), shown(grey(), 8))
    for bits in (10, 12):
        deep = levels(picture(), bits)
        data = imagecodecs.avif_encode(deep, level=95, bitspersample=bits, speed=8)
        yield Case("AVIF", f"RGB, {bits} bits", "quality 95", bytes(data), shown(deep, bits))
