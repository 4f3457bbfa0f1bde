"""Sequences of many lengths into rows of one length: best-fit decreasing, or one a row with those of like length
together; and which rows each rank takes.

Best-fit decreasing takes the longest sequence first and puts it into the fullest row that still has room for it, or
into a new one. Sequences of equal length are alike, and so are rows with equal room, which allows for large strides:
a row with room r takes r // L sequences of length L at once, since after each of them it is the fullest of all that
fit, and neighbouring rows with the same room do it together. The result is that of the plain algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Which of n sequences stand in which row, and in what order."""

    sequences: np.ndarray  # (n,) int64, indices of the lengths that were given, row after row
    starts: np.ndarray  # (num_rows + 1,) int64, cumulative: row i has sequences[starts[i] : starts[i + 1]]
    row_tokens: int
    num_tokens: int  # the sum of all lengths

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1

    @property
    def fill(self) -> float:
        """The share of all rows that holds tokens; 1 where there are no rows."""
        return self.num_tokens / (self.num_rows * self.row_tokens) if self.num_rows else 1.0


def pack(lengths: np.ndarray, *, row_tokens: int, random: np.random.Generator) -> Packing:
    """Pack sequences of the given `lengths`, (n,) integers, into few rows of `row_tokens`.

    The rows stand in random order, and the sequences in a row too; which sequences of equal length come together is
    random as well. The result depends on the arguments alone, not on the platform or the version of NumPy. Rows are
    never fewer than total / row_tokens, so that the fill of few rows is at most total / (ceil(total / row_tokens) *
    row_tokens). Raises ValueError for a length below 1 or above `row_tokens`.
    """
    lengths = np.asarray(lengths, np.int64)
    _check_lengths(lengths, row_tokens)
    shuffled = permutation(len(lengths), random)
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    values, counts = np.unique(lengths, return_counts=True)
    strides = _best_fit(values[::-1].tolist(), counts[::-1].tolist(), row_tokens)
    num_rows = strides.num_rows
    rows = permutation(num_rows, random)[strides.row_of_each()]  # (n,), of longest_first

    shuffled = permutation(len(lengths), random)
    by_row = shuffled[np.argsort(rows[shuffled], kind="stable")]
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=starts[1:])
    return Packing(longest_first[by_row], starts, row_tokens, int(lengths.sum()))


def count_rows(lengths: np.ndarray, *, row_tokens: int) -> int:
    """How many rows `pack` makes of sequences of these lengths."""
    values, counts = np.unique(lengths, return_counts=True)
    return _best_fit(values[::-1].tolist(), counts[::-1].tolist(), row_tokens).num_rows


def one_a_row(
    lengths: np.ndarray, *, row_tokens: int, rows_per_step: int, first_place: int, random: np.random.Generator
) -> Packing:
    """Each sequence of the given `lengths`, (n,) integers, in a row of its own, those of one step alike in length.

    Steps have `rows_per_step` rows, and the first row stands at `first_place` of its step, so that the first step and
    the last may have fewer of these. The steps stand in random order, and so do sequences of equal length. Raises
    ValueError as `pack`.
    """
    lengths = np.asarray(lengths, np.int64)
    _check_lengths(lengths, row_tokens)
    shuffled = permutation(len(lengths), random)
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    begins = np.arange(-first_place, len(lengths), rows_per_step).clip(0)  # of the steps
    sizes = np.diff(begins, append=len(lengths))
    order = permutation(len(sizes), random)  # which step has the longest sequences, and so on
    rows = ranges(begins[order], sizes[order])  # (n,), of longest_first
    by_row = np.empty(len(lengths), np.int64)
    by_row[rows] = longest_first
    return Packing(by_row, np.arange(len(lengths) + 1), row_tokens, int(lengths.sum()))


def permutation(count: int, random: np.random.Generator) -> np.ndarray:
    """The numbers 0 to `count` - 1 in random order, (count,) int64.

    Made from raw bits of the generator, whose stream never changes; that of `Generator.permutation` may, with the
    version of NumPy (NEP 19).
    """
    return np.argsort(random.bit_generator.random_raw(count), kind="stable")


def rows_per_rank(rows_per_step: int, num_ranks: int) -> int:
    """How many rows every rank has in a step, the empty ones that make all ranks equal included."""
    return -(-rows_per_step // num_ranks)


def rank_rows(
    num_rows: int, *, first_place: int, rows_per_step: int, rank: int, num_ranks: int
) -> np.ndarray:
    """Which of `num_rows` rows that follow each other belong to a rank, (m,) int64, ascending.

    Step s has the rows [s * R, (s + 1) * R) of an endless stream, R = `rows_per_step`, and rank r takes those at the
    places r, r + W, r + 2 W, ... in it, W = `num_ranks`. `first_place` is the place of the first row in its step. Ranks
    with less than `rows_per_rank` rows of a step fill it up with empty ones.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank={rank}: expected 0 to num_ranks - 1 = {num_ranks - 1}; count ranks from 0")
    places = (first_place + np.arange(num_rows)) % rows_per_step
    return np.flatnonzero(places % num_ranks == rank)


def _check_lengths(lengths: np.ndarray, row_tokens: int) -> None:
    if len(lengths) and lengths.max() > row_tokens:
        raise ValueError(
            f"a sequence of {lengths.max()} tokens (number {lengths.argmax()}): expected at most row_tokens="
            f"{row_tokens}; raise row_tokens, or leave the sequence out"
        )
    if len(lengths) and lengths.min() < 1:
        raise ValueError(
            f"a sequence of {lengths.min()} tokens (number {lengths.argmin()}): expected at least 1; leave it out"
        )


class _Strides:
    """What best-fit decreasing did: `count` rows from `first` on took `taken` sequences each, the next in order."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._first: list[int] = []
        self._count: list[int] = []
        self._taken: list[int] = []

    def add(self, first: int, count: int, taken: int) -> None:
        self._first.append(first)
        self._count.append(count)
        self._taken.append(taken)

    def row_of_each(self) -> np.ndarray:
        """The row of each sequence, (n,) int64, longest first."""
        count, taken = np.array(self._count, np.int64), np.array(self._taken, np.int64)
        rows = ranges(np.array(self._first, np.int64), count)
        return np.repeat(rows, np.repeat(taken, count))


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] numbers), first[1], ..."""
    return np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)


def _best_fit(lengths: list[int], counts: list[int], row_tokens: int) -> _Strides:
    """Pack `counts[i]` sequences of `lengths[i]`, which descend."""
    strides = _Strides()
    ranges: dict[int, list[tuple[int, int]]] = {}  # room -> ranges (first row, number of rows) that have it
    rooms = 0  # bit r is set where there are rows with room r

    def put(room: int, first: int, count: int) -> None:
        nonlocal rooms
        if room and count:
            ranges.setdefault(room, []).append((first, count))
            rooms |= 1 << room

    for length, count in zip(lengths, counts, strict=True):
        while count:
            roomy = rooms >> length
            if roomy:
                room = length + (roomy & -roomy).bit_length() - 1  # the least that is enough
                first, num_rows = ranges[room].pop()
                if not ranges[room]:
                    rooms ^= 1 << room
            else:
                room, first = row_tokens, strides.num_rows
                num_rows = -(-count // (room // length))
                strides.num_rows += num_rows
            taken = room // length
            num_full = min(num_rows, count // taken)
            if num_full:
                strides.add(first, num_full, taken)
                put(room - taken * length, first, num_full)
                count -= num_full * taken
            if num_full < num_rows and count:  # the last sequences of this length, into one more row
                strides.add(first + num_full, 1, count)
                put(room - count * length, first + num_full, 1)
                num_full, count = num_full + 1, 0
            put(room, first + num_full, num_rows - num_full)
    return strides
