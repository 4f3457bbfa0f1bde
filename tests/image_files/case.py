"""What every generated file shows: one small picture, whose pixels are known before any decoder sees the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

# Odd, so that rows of less than a byte a pixel end inside a byte, and tiles reach over the edge.
SIDE = 37


@dataclass(frozen=True)
class Case:
    """A file. `kind` is what the table of the documentation calls it, `detail` tells it from others of the kind."""

    format: str
    kind: str
    detail: str
    data: bytes
    # (SIDE, SIDE, 3), what a reader has to show, over white; None where only other decoders can say.
    truth: np.ndarray | None = None
    # Left, top, right and bottom of what the first frame covers. Outside of it decoders without alpha show anything.
    covered: tuple[int, int, int, int] = (0, 0, SIDE, SIDE)
    refused: str = "Unsupported"  # how the error begins that a reader may refuse it with

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", re.sub(r"\b1 bits", "1 bit", self.kind))
        if self.truth is not None:  # unsigned values would wrap around when they are compared
            object.__setattr__(self, "truth", np.asarray(self.truth, np.float64))

    def __str__(self) -> str:
        return f"{self.format} {self.kind} [{self.detail}]"


@cache
def picture(seed: int = 0) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: smooth, so that subsampled colours and lossy coding lose little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@cache
def grey(seed: int = 0) -> np.ndarray:
    """(SIDE, SIDE) uint8."""
    return np.asarray(Image.fromarray(picture(seed)).convert("L"))


@cache
def alpha() -> np.ndarray:
    """(SIDE, SIDE) uint8: from transparent on the left to opaque on the right, with a little of both whole."""
    ramp = np.clip(np.linspace(-60, 315, SIDE), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(ramp, (SIDE, SIDE)))


def levels(values: np.ndarray, bits: int) -> np.ndarray:
    """8-bit values at another depth, 1 to 32 bits, unsigned."""
    scaled = values.astype(np.float64) / 255 * (2.0**bits - 1)
    return np.round(scaled).astype(np.uint32 if bits > 16 else np.uint16 if bits > 8 else np.uint8)


def shown(values: np.ndarray, bits: int) -> np.ndarray:
    """Values of so many bits as they appear, 0 to 255, in three channels."""
    scaled = values.astype(np.float64) / (2.0**bits - 1) * 255
    return np.dstack([scaled] * 3) if scaled.ndim == 2 else scaled


def over_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Colours, 0 to 255, behind an alpha of 0 to 255."""
    weight = opacity.astype(np.float64)[..., None] / 255
    return np.asarray(colours, np.float64) * weight + 255 * (1 - weight)


def few_colours(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The picture with so many colours: indices (SIDE, SIDE) uint8 and palette (count, 3) uint8, all of it used."""
    palette = np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)
    indices = (np.arange(SIDE)[:, None] // 3 + np.arange(SIDE) // 4) % count
    return indices.astype(np.uint8), palette


def pack_bits(rows: np.ndarray, bits: int) -> list[bytes]:
    """Rows (H, n) of values of less than 16 bits, the highest bit first, each row filled up to a byte."""
    planes = (rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in planes.astype(np.uint8)]
