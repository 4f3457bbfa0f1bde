"""Packed batches as the generator reads them: tensors, and which elements predict what.

Letters: T elements, S sequences, K globals, N patch places, G = S·K globals and P patches in a batch, E size of a
condition embedding, Q stretches of sequences and padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.nn.rotary import grid_coordinates
from tatok_pipe.records import Kind, PackedBatch

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # imports pyarrow


@dataclass(frozen=True)
class Vocabulary:
    """What sequences are made of."""

    num_globals: int  # K, per sequence
    num_patches: int  # N, places; a sequence has a patch at any subset of them
    global_vocab: int  # V_g, codes
    patch_vocab: int  # V_p, codes

    def __post_init__(self) -> None:
        if self.num_globals < 0 or min(self.num_patches, self.global_vocab, self.patch_vocab) < 1:
            raise ValueError(f"{self}: expected at least 1 of each, and 0 or more globals")

    @classmethod
    def from_spec(cls, spec: TokenSpec) -> Vocabulary:
        """The vocabulary of a token dataset."""
        return cls(spec.num_globals, spec.num_patches, spec.global_vocab, spec.patch_vocab)

    @property
    def max_length(self) -> int:
        """Elements of the longest sequence: condition, globals, and a patch at every place."""
        return 1 + self.num_globals + self.num_patches

    def coordinates(self) -> Tensor:
        """Row and column of every spot, (max_length, 2) float32: what precedes the patches is in the middle, a patch
        at its cell of the smallest square grid that has all places."""
        side = math.isqrt(self.num_patches - 1) + 1
        middle = torch.full((1 + self.num_globals, 2), (side - 1) / 2)
        return torch.cat([middle, grid_coordinates(side)[: self.num_patches]])


@dataclass(frozen=True)
class BatchTensors:
    """A `PackedBatch` on a device. What each element predicts is the next element of its sequence.

    An element's spot is where it would be in a sequence that has a patch at every place: 0 for the condition, 1 … K for
    globals, 1 + K + position for patches.
    """

    kinds: Tensor  # (T,) uint8, `Kind`
    codes: Tensor  # (T,) int64, of globals and patches; 0 elsewhere
    places: Tensor  # (T,) int64, index of a global, position of a patch; 0 elsewhere
    spots: Tensor  # (T,) int64, below `Vocabulary.max_length`; 0 for padding
    boundaries: Tensor  # (Q + 1,) int32, cumulative starts, then T, which may repeat
    condition_at: Tensor  # (S,) int64, elements
    global_at: Tensor  # (G,) int64, elements
    patch_at: Tensor  # (P,) int64, elements
    # Elements that predict a position: what precedes a patch, then the last elements of sequences, which predict END.
    position_at: Tensor  # (P + S,) int64
    position_targets: Tensor  # (P + S,) int64, N is END
    last_positions: Tensor  # (P + S,) int64, of `position_at`; -1 where no patch has come yet
    labels: Tensor  # (S,) int64
    is_conditional: Tensor  # (S,) bool
    asked_patches: (
        Tensor  # (S,) int64, how many patches the sequence is told to have; -1 where it is not told
    )
    embeddings: Tensor | None  # (S, E) float32

    @property
    def num_elements(self) -> int:
        return len(self.kinds)


def to_tensors(
    batch: PackedBatch,
    device: torch.device | str,
    *,
    vocabulary: Vocabulary,
    max_stretches: int | None = None,
) -> BatchTensors:
    """Move a batch to `device`, without waiting for the copies where that is a GPU.

    Padding is cut into stretches of at most `vocabulary.max_length`, so that this bounds every stretch. `boundaries`
    is filled up with T to `max_stretches` stretches; by default with as many as T elements in R rows can ever need,
    T // (1 + K) + R, so that its shape depends on the shape of the batch alone.

    Raises ValueError where the batch is not of this vocabulary, or has more stretches than `max_stretches`.
    """
    kinds = batch.kinds
    condition_at, global_at, patch_at = (
        np.flatnonzero(kinds == kind) for kind in (Kind.CONDITION, Kind.GLOBAL, Kind.PATCH)
    )
    boundaries = np.unique(batch.boundaries)  # sorted as it is, without stretches of no elements
    is_sequence = kinds[boundaries[:-1]] != Kind.PADDING
    last_at = boundaries[1:][is_sequence] - 1  # (S,)
    lengths = np.diff(boundaries)[is_sequence]  # (S,)
    _check(batch, vocabulary, longest=int(lengths.max(initial=0)))

    longest = vocabulary.max_length
    cuts = [
        np.arange(start, stop, longest)
        for start, stop in zip(boundaries[:-1][~is_sequence], boundaries[1:][~is_sequence], strict=True)
    ]
    boundaries = np.unique(np.concatenate([boundaries, *cuts]))
    if max_stretches is None:
        max_stretches = batch.num_elements // (1 + vocabulary.num_globals) + batch.num_rows
    if len(boundaries) - 1 > max_stretches:
        raise ValueError(f"max_stretches={max_stretches}: the batch has {len(boundaries) - 1}")
    boundaries = np.pad(boundaries, (0, max_stretches + 1 - len(boundaries)), mode="edge")

    position_at = np.concatenate([patch_at - 1, last_at])
    ends = np.full(len(last_at), vocabulary.num_patches)
    pin = torch.device(device).type == "cuda"

    def move(values: np.ndarray, dtype: type = np.int64) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype))
        return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=True)

    return BatchTensors(
        kinds=move(kinds, np.uint8),
        codes=move(batch.codes),
        places=move(batch.places),
        spots=move(_spots(batch, vocabulary)),
        boundaries=move(boundaries, np.int32),
        condition_at=move(condition_at),
        global_at=move(global_at),
        patch_at=move(patch_at),
        position_at=move(position_at),
        position_targets=move(np.concatenate([batch.places[patch_at], ends])),
        last_positions=move(np.where(kinds[position_at] == Kind.PATCH, batch.places[position_at], -1)),
        labels=move(batch.labels),
        is_conditional=move(batch.is_conditional, np.bool_),
        asked_patches=move(np.where(batch.has_budget, lengths - 1 - vocabulary.num_globals, -1)),
        embeddings=None if batch.embeddings is None else move(batch.embeddings, np.float32),
    )


def _spots(batch: PackedBatch, vocabulary: Vocabulary) -> np.ndarray:
    """(T,)"""
    first = np.zeros(len(Kind), np.int64)
    first[Kind.GLOBAL], first[Kind.PATCH] = 1, 1 + vocabulary.num_globals
    return first[batch.kinds] + batch.places


def _check(batch: PackedBatch, vocabulary: Vocabulary, *, longest: int) -> None:
    """Here, because on a GPU an index out of range ends the process without saying which."""
    num_globals = int((batch.kinds == Kind.GLOBAL).sum())
    if longest > vocabulary.max_length or num_globals != batch.num_sequences * vocabulary.num_globals:
        raise ValueError(
            f"{batch.num_sequences} sequences with {num_globals} globals and up to {longest} elements are not of "
            f"{vocabulary}: expected the vocabulary of the token dataset"
        )
    for kind, codes, places in (
        (Kind.GLOBAL, vocabulary.global_vocab, vocabulary.num_globals),
        (Kind.PATCH, vocabulary.patch_vocab, vocabulary.num_patches),
    ):
        of_kind = batch.kinds == kind
        for name, values, limit in (("code", batch.codes, codes), ("place", batch.places, places)):
            low, high = int(values[of_kind].min(initial=0)), int(values[of_kind].max(initial=0))
            if low < 0 or high >= max(1, limit):
                found = low if low < 0 else high
                raise ValueError(
                    f"{kind.name.lower()} {name} {found}: expected 0 to {limit - 1} of {vocabulary}"
                )
