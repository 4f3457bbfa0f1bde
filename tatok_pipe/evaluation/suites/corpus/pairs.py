"""Images that two token shards hold under the same key and crop, in whatever order.

Letters: B images, N patches, K globals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from tatok_pipe.evaluation.suites.corpus.comparable import EQUAL_GLOBALS, EQUAL_PATCHES, OVERLAP, left_out
from tatok_pipe.evaluation.suites.corpus.drift import equal_kept_share, equal_share, kept_overlap
from tatok_pipe.tokens.columns import list_lengths, to_numpy
from tatok_pipe.tokens.spec import TokenSpec

COLUMNS = ("key", "crop", "global_codes", "patch_codes", "patch_positions")
VALUES = ("tokens", "other_tokens", "equal_globals", "equal_patches", "overlap", "identical")
_MAX_CELLS = 1 << 22  # images by patches that are compared at once
_NUM_CHANGED = 20


@dataclass(frozen=True)
class Changed:
    """An image whose tokens are not the same in both."""

    key: str
    crop: int
    tokens: int
    other_tokens: int
    overlap: float | None  # None where the grids differ


def most_changed(images: Iterable[Changed]) -> list[Changed]:
    """The 20 images whose number of tokens changed most, those of a smaller overlap first, then by key."""
    return sorted(
        images,
        key=lambda each: (
            -abs(each.other_tokens - each.tokens),
            1.0 if each.overlap is None else each.overlap,
            each.key,
            each.crop,
        ),
    )[:_NUM_CHANGED]


@dataclass
class Pairs:
    """What was found of the pairs: VALUES, each (B,), and the images that changed most."""

    values: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in VALUES})
    changed: list[Changed] = field(default_factory=list)

    def add(self, values: Mapping[str, ArrayLike], changed: Sequence[Changed]) -> None:
        for name in VALUES:
            self.values[name].append(np.asarray(values[name], np.float64))
        self.changed = most_changed([*self.changed, *changed])

    def column(self, name: str) -> np.ndarray:
        """(B,) float64; NaN where there is nothing to compare."""
        return np.concatenate([np.empty(0), *self.values[name]])


class Pairing:
    """Batches of a token shard beside the other shard, which is held in memory."""

    def __init__(
        self, spec: TokenSpec, other_spec: TokenSpec, other_batches: Iterable[pa.RecordBatch]
    ) -> None:
        self.pairs = Pairs()
        self._specs = spec, other_spec
        self._left_out = left_out(spec, other_spec)
        batches = list(other_batches)
        self._other = pa.concat_batches(batches) if batches else None
        names = _names(self._other) if self._other is not None else []
        self._place_of = {name: place for place, name in enumerate(names)}

    def add(self, batch: pa.RecordBatch) -> None:
        step = max(1, _MAX_CELLS // max(spec.num_patches for spec in self._specs))
        for start in range(0, batch.num_rows, step):
            self._add(batch.slice(start, step))

    def _add(self, batch: pa.RecordBatch) -> None:
        names = _names(batch)
        found = [place for place, name in enumerate(names) if name in self._place_of]
        if not found or self._other is None:
            return
        ours = batch.take(pa.array(found))
        theirs = self._other.take(pa.array([self._place_of[names[place]] for place in found]))
        values = self._compare(ours, theirs)
        changed = []
        for place, row in enumerate(found):
            tokens, other_tokens = int(values["tokens"][place]), int(values["other_tokens"][place])
            overlap = float(values["overlap"][place])
            if tokens != other_tokens or overlap < 1 or values["identical"][place] < 1:
                shown = None if math.isnan(overlap) else overlap
                changed.append(Changed(*names[row], tokens, other_tokens, shown))
        self.pairs.add(values, changed)

    def _compare(self, ours: pa.RecordBatch, theirs: pa.RecordBatch) -> dict[str, np.ndarray]:
        """VALUES, each (B,)."""
        spec, other_spec = self._specs
        nothing = np.full(ours.num_rows, math.nan)
        equal_globals = equal_patches = overlap = identical = nothing
        if EQUAL_GLOBALS not in self._left_out:
            equal_globals = equal_share(
                *(
                    to_numpy(each.column("global_codes").flatten()).reshape(each.num_rows, spec.num_globals)
                    for each in (ours, theirs)
                )
            )
        if OVERLAP not in self._left_out:
            keep, codes = _dense(ours, spec.num_patches)
            other_keep, other_codes = _dense(theirs, spec.num_patches)
            overlap = kept_overlap(keep, other_keep)
            if EQUAL_PATCHES not in self._left_out:
                equal_patches = equal_kept_share(codes, other_codes, keep=keep & other_keep)
        if not {EQUAL_GLOBALS, EQUAL_PATCHES} & self._left_out.keys():
            differs = (equal_globals < 1) | (equal_patches < 1) | (overlap < 1)
            identical = 1.0 - differs
        return {
            "tokens": spec.num_globals + list_lengths(ours.column("patch_codes")),
            "other_tokens": other_spec.num_globals + list_lengths(theirs.column("patch_codes")),
            "equal_globals": equal_globals,
            "equal_patches": equal_patches,
            "overlap": overlap,
            "identical": identical,
        }


def _names(batch: pa.RecordBatch) -> list[tuple[str, int]]:
    return list(zip(batch.column("key").to_pylist(), batch.column("crop").to_pylist(), strict=True))


def _dense(batch: pa.RecordBatch, num_patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Which positions are kept, (B, N) bool, and the codes there, (B, N) int64, 0 elsewhere."""
    positions = batch.column("patch_positions")
    row_of = np.repeat(np.arange(batch.num_rows), list_lengths(positions))
    places = row_of, to_numpy(positions.flatten())
    keep = np.zeros((batch.num_rows, num_patches), np.bool_)
    codes = np.zeros((batch.num_rows, num_patches), np.int64)
    keep[places] = True
    codes[places] = to_numpy(batch.column("patch_codes").flatten())
    return keep, codes
