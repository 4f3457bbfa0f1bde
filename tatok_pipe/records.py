"""The records that flow through the pipeline, in order: sample, decoded image or quarantine row, token row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageSample:
    """One undecoded image of a shard, with what came beside it."""

    key: str
    image: bytes
    label: int | None = None
    caption: str | None = None
    meta: str | None = None  # JSON text


@dataclass(frozen=True)
class Quarantined:
    """A source sample that produced no row, and why. `stage` is "shard", "metadata" or "decode"."""

    key: str
    stage: str
    error: str  # error class, stable across versions: "NotAnImage", "TooManyPixels", ...
    message: str
    num_bytes: int


@dataclass(frozen=True)
class DecodedImage:
    """A sample ready for the encoder. Its encoded image is gone, so that what waits in queues stays small."""

    key: str
    label: int | None
    caption: str | None
    meta: str | None
    num_bytes: int  # of the encoded image
    pixels: np.ndarray  # (image_size, image_size, 3) uint8, sRGB
    width: int  # of the source after EXIF orientation, pixels
    height: int
    crop: int = 0


@dataclass(frozen=True)
class TokenRecord:
    """One row of a token dataset (format 1). K globals; M kept of N patches, in raster order."""

    key: str
    label: int | None
    caption: str | None
    meta: str | None
    width: int
    height: int
    crop: int
    global_codes: np.ndarray  # (K,) uint16 or uint32
    patch_codes: np.ndarray  # (M,) uint16 or uint32
    patch_positions: np.ndarray  # (M,) uint16, strictly increasing raster indices
    entropy_total: float  # nats, over all N patches
    entropy_dropped: float  # nats, over the N - M dropped ones
    mutual_information: float | None = None  # nats, the estimate of I(G; P)
    patch_entropy: np.ndarray | None = None  # (N,) float16 nats

    @property
    def num_tokens(self) -> int:
        return len(self.global_codes) + len(self.patch_codes)
