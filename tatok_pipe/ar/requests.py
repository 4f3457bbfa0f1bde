"""What a sampler is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Place(IntEnum):
    """What stands for a code that is not given."""

    FREE = -1  # a patch may be there or not
    DRAWN = -2  # there is a patch, whose code is drawn
    ABSENT = -3  # there is none


@dataclass(frozen=True)
class ImageRequest:
    """One image. K globals, N places. Equal requests give equal images, whatever is asked for beside them."""

    number: int  # given back with the image
    seed: int  # of all its draws, 64 bits
    label: int | None = None  # where the condition is a class; None: no class
    embedding: np.ndarray | None = None  # (E,) where the condition is an embedding; None: none
    num_patches: int | None = (
        None  # about how many are asked for, where the generator knows budgets; None: any
    )
    global_codes: np.ndarray | None = None  # (K,) int: a code that is given, or FREE
    patches: np.ndarray | None = None  # (N,) int: a code that is given, or FREE, DRAWN or ABSENT


@dataclass(frozen=True)
class ImageTokens:
    """One image as tokens: K globals, and M patches in raster order."""

    number: int
    global_codes: np.ndarray  # (K,) int32
    patch_codes: np.ndarray  # (M,) int32
    patch_positions: np.ndarray  # (M,) int32, strictly increasing

    @property
    def num_tokens(self) -> int:
        return len(self.global_codes) + len(self.patch_codes)
