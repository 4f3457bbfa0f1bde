"""The records that flow through the pipeline, in order: sample, decoded image or quarantine row, token row, and the
packed batch that the generator trains on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

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
    num_bytes: int  # of the encoded image, whichever crop of it this is
    pixels: np.ndarray  # (image_size, image_size, 3) uint8, sRGB
    width: int  # of the source after EXIF orientation, pixels
    height: int
    crop: int = 0  # number of the crop, as `CropPlan.squares` has them


@dataclass(frozen=True)
class TokenRecord:
    """One row of a token dataset (format 3). K globals; M kept of N patches, in raster order."""

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
    patch_entropy: np.ndarray | None = None  # (N,) float32 nats
    patch_score: np.ndarray | None = (
        None  # (N,) float16, what losing each patch costs, where the dataset has it
    )

    @property
    def num_tokens(self) -> int:
        return len(self.global_codes) + len(self.patch_codes)


class Kind(IntEnum):
    """What an element of a packed row is."""

    PADDING = 0
    CONDITION = 1
    GLOBAL = 2
    PATCH = 3


@dataclass(frozen=True)
class PackedBatch:
    """Some rows of packed token sequences, laid end to end: T elements in R rows of T / R, S sequences.

    A sequence is `[condition] g_1 … g_K patch_1 … patch_M`, 1 + K + M elements that stand together in one row. Each
    element predicts the next one of its sequence, the last one its end. What a row has left at its end is padding.
    """

    num_rows: int
    kinds: np.ndarray  # (T,) uint8, `Kind`
    codes: np.ndarray  # (T,) int32, the code of a global or patch; 0 elsewhere
    places: np.ndarray  # (T,) int32, index of a global, raster position of a patch; 0 elsewhere
    order: np.ndarray  # (T,) int32, index in the sequence, and in its stretch for padding
    # (S + stretches of padding + 1,) int32, cumulative: where sequences and stretches of padding begin, then T.
    boundaries: np.ndarray
    labels: np.ndarray  # (S,) int32, class of each sequence; 0 where the condition is none
    is_conditional: np.ndarray  # (S,) bool; False where the condition is hidden, for classifier-free guidance
    has_budget: np.ndarray  # (S,) bool; False where the number of patches is not told beforehand
    embeddings: np.ndarray | None  # (S, E) float32 where the condition is an embedding
    sequences: (
        np.ndarray
    )  # (S,) int64, number of each sequence in its dataset: rows of its shards in name order

    @property
    def num_elements(self) -> int:
        return len(self.kinds)

    @property
    def num_sequences(self) -> int:
        return len(self.labels)
