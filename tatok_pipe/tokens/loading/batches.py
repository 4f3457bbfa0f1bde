"""Token sequences laid out as rows for the model, without a loop over sequences; and cutting and joining of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tatok_pipe.records import Kind, PackedBatch
from tatok_pipe.tokens.loading.packing import Packing, ranges


@dataclass(frozen=True)
class Sequences:
    """The sequences of a window in columns: n of them, K globals each, M patches of their own."""

    numbers: np.ndarray  # (n,) int64, as `RowGroup.shard_begin` counts rows
    global_codes: np.ndarray  # (n, K) uint16 or uint32, as the dataset has them
    num_patches: np.ndarray  # (n,) int64, M
    patch_codes: np.ndarray  # (sum of M,) uint16 or uint32
    patch_positions: np.ndarray  # (sum of M,) uint16
    labels: np.ndarray  # (n,) int32; 0 where the condition is no class
    is_conditional: np.ndarray  # (n,) bool
    has_budget: np.ndarray  # (n,) bool
    embeddings: np.ndarray | None  # (n, E) float32

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, elements of each with its condition: 1 + K + M."""
        return 1 + self.global_codes.shape[1] + self.num_patches

    @cached_property
    def first_patches(self) -> np.ndarray:
        """(n + 1,) int64, where the patches of each begin, and where the last end."""
        return cumulative(self.num_patches)

    def cut(self, start: int, stop: int) -> Sequences:
        """The sequences from `start` to `stop` as views of this memory."""
        patches = slice(int(self.first_patches[start]), int(self.first_patches[stop]))
        return Sequences(
            numbers=self.numbers[start:stop],
            global_codes=self.global_codes[start:stop],
            num_patches=self.num_patches[start:stop],
            patch_codes=self.patch_codes[patches],
            patch_positions=self.patch_positions[patches],
            labels=self.labels[start:stop],
            is_conditional=self.is_conditional[start:stop],
            has_budget=self.has_budget[start:stop],
            embeddings=None if self.embeddings is None else self.embeddings[start:stop],
        )


@dataclass(frozen=True)
class PackedRows:
    """Some `rows`, (R,), of a packing of `sequences`, which are laid out where they are needed: all of a window at once
    would take more memory than its sequences, and more time, as it fits into no cache."""

    sequences: Sequences
    packing: Packing
    rows: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def cut(self, start: int, stop: int, *, row_tokens: int | None = None) -> PackedBatch:
        """Those from `start` to `stop`, as `lay_out`."""
        return lay_out(self.sequences, self.packing, self.rows[start:stop], row_tokens=row_tokens)

    def fullest(self, start: int, stop: int) -> int:
        """The most elements that one of those from `start` to `stop` has; 0 where there are none."""
        _, first_sequences, lengths = _choose(self.sequences, self.packing, self.rows[start:stop])
        return int(np.diff(cumulative(lengths)[first_sequences]).max(initial=0))


def _choose(
    sequences: Sequences, packing: Packing, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the given `rows`, (R,): the sequences that are in them, (S,), where those of each begin, (R + 1,), and how
    many elements each has, (S,)."""
    per_row = packing.starts[rows + 1] - packing.starts[rows]  # (R,)
    chosen = packing.sequences[ranges(packing.starts[rows], per_row)]
    return chosen, cumulative(per_row), sequences.num_patches[chosen] + (1 + sequences.global_codes.shape[1])


def lay_out(
    sequences: Sequences, packing: Packing, rows: np.ndarray, *, row_tokens: int | None = None
) -> PackedBatch:
    """The given `rows`, (R,), of a packing of `sequences`, in that order, of `row_tokens` elements each, which must be
    enough for all of them; the packing's where none is given."""
    row_tokens = packing.row_tokens if row_tokens is None else row_tokens
    num_globals = sequences.global_codes.shape[1]
    chosen, first_sequences, lengths = _choose(sequences, packing, rows)
    per_row = np.diff(first_sequences)  # (R,)

    # Segments are the sequences of each row and, where it is not full, its padding.
    used = np.diff(cumulative(lengths)[first_sequences])  # (R,)
    is_padded = used < row_tokens
    first_boundaries = cumulative(per_row + is_padded)
    segments = np.empty(first_boundaries[-1], np.int64)
    is_padding = np.zeros(len(segments), np.bool_)
    is_padding[first_boundaries[1:][is_padded] - 1] = True
    segments[is_padding] = (row_tokens - used)[is_padded]
    segments[~is_padding] = lengths
    boundaries = cumulative(segments).astype(np.int32)
    starts = boundaries[:-1][~is_padding]  # (S,), where sequences begin

    num_elements = len(rows) * row_tokens
    order = np.arange(num_elements, dtype=np.int32)
    order -= np.repeat(boundaries[:-1], segments)
    kinds = np.repeat(np.where(is_padding, Kind.PADDING, Kind.PATCH).astype(np.uint8), segments)
    # Every element is taken for a patch first, in one sweep; what is none is overwritten.
    offsets = np.zeros(len(segments), np.int64)
    offsets[~is_padding] = sequences.first_patches[chosen] - (starts + 1 + num_globals)
    patches = np.repeat(offsets, segments)
    patches += np.arange(num_elements)
    codes, places = (_take(each, patches) for each in (sequences.patch_codes, sequences.patch_positions))
    is_none = np.append(ranges(boundaries[:-1][is_padding], segments[is_padding]), starts)
    codes[is_none] = places[is_none] = 0
    kinds[starts] = Kind.CONDITION
    global_places = np.arange(num_globals, dtype=np.int32)
    globals_at = (starts[:, None] + 1 + global_places).ravel()  # (S * K,)
    kinds[globals_at] = Kind.GLOBAL
    codes[globals_at] = sequences.global_codes[chosen].ravel()
    places[globals_at] = np.tile(global_places, len(chosen))
    return PackedBatch(
        num_rows=len(rows),
        kinds=kinds,
        codes=codes,
        places=places,
        order=order,
        boundaries=boundaries,
        labels=sequences.labels[chosen],
        is_conditional=sequences.is_conditional[chosen],
        has_budget=sequences.has_budget[chosen],
        embeddings=None if sequences.embeddings is None else sequences.embeddings[chosen],
        sequences=sequences.numbers[chosen],
    )


def empty_rows(num_rows: int, *, row_tokens: int, embedding_size: int | None) -> PackedBatch:
    """Rows of nothing but padding, for ranks that have less rows than others."""
    num_elements = num_rows * row_tokens
    return PackedBatch(
        num_rows=num_rows,
        kinds=np.full(num_elements, Kind.PADDING, np.uint8),
        codes=np.zeros(num_elements, np.int32),
        places=np.zeros(num_elements, np.int32),
        order=np.tile(np.arange(row_tokens, dtype=np.int32), num_rows),
        boundaries=np.arange(num_rows + 1, dtype=np.int32) * np.int32(row_tokens),
        labels=np.zeros(0, np.int32),
        is_conditional=np.zeros(0, np.bool_),
        has_budget=np.zeros(0, np.bool_),
        embeddings=None if embedding_size is None else np.zeros((0, embedding_size), np.float32),
        sequences=np.zeros(0, np.int64),
    )


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """At least one batch, one after the other."""
    if len(batches) == 1:
        return batches[0]
    begins = np.cumsum([0] + [batch.num_elements for batch in batches]).astype(np.int32)
    boundaries = [batch.boundaries[:-1] + begin for batch, begin in zip(batches, begins[:-1], strict=True)]
    embeddings = [batch.embeddings for batch in batches if batch.embeddings is not None]
    return PackedBatch(
        num_rows=sum(batch.num_rows for batch in batches),
        kinds=np.concatenate([batch.kinds for batch in batches]),
        codes=np.concatenate([batch.codes for batch in batches]),
        places=np.concatenate([batch.places for batch in batches]),
        order=np.concatenate([batch.order for batch in batches]),
        boundaries=np.concatenate([*boundaries, begins[-1:]]),
        labels=np.concatenate([batch.labels for batch in batches]),
        is_conditional=np.concatenate([batch.is_conditional for batch in batches]),
        has_budget=np.concatenate([batch.has_budget for batch in batches]),
        embeddings=np.concatenate(embeddings) if embeddings else None,
        sequences=np.concatenate([batch.sequences for batch in batches]),
    )


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) int32 of the values at (n,) places; of a place outside it is any."""
    if not len(values):
        return np.zeros(len(places), np.int32)
    return values.take(places, mode="clip").astype(np.int32)


def cumulative(counts: np.ndarray) -> np.ndarray:
    """0 and the sums of the first one, two, …: (n + 1,) int64."""
    sums = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums
