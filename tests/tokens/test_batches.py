from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tatok_pipe.records import Kind, PackedBatch
from tatok_pipe.tokens.loading.batches import PackedRows, Sequences, empty_rows, join, lay_out
from tatok_pipe.tokens.loading.packing import Packing, pack

NUM_GLOBALS = 3


def make_sequences(counts: list[int], seed: int = 0, embedding_size: int | None = 2) -> Sequences:
    random = np.random.default_rng(seed)
    n = len(counts)
    return Sequences(
        numbers=random.permutation(1000)[:n],
        global_codes=random.integers(1, 500, (n, NUM_GLOBALS)).astype(np.int32),
        num_patches=np.array(counts, np.int64),
        patch_codes=random.integers(1, 70_000, sum(counts)).astype(np.int32),
        patch_positions=random.integers(0, 256, sum(counts)).astype(np.int32),
        labels=random.integers(0, 10, n).astype(np.int32),
        is_conditional=random.integers(0, 2, n).astype(np.bool_),
        has_budget=random.integers(0, 2, n).astype(np.bool_),
        embeddings=None
        if embedding_size is None
        else random.normal(size=(n, embedding_size)).astype(np.float32),
    )


def expected_batch(sequences: Sequences, packing: Packing, rows: list[int]) -> PackedBatch:
    """The same element by element."""
    elements: list[tuple[int, int, int, int]] = []
    boundaries, chosen = [], []
    ends = np.cumsum(sequences.num_patches)
    for row in rows:
        stop = len(elements) + packing.row_tokens
        for index in packing.sequences[packing.starts[row] : packing.starts[row + 1]].tolist():
            chosen.append(index)
            boundaries.append(len(elements))
            codes = sequences.global_codes[index].tolist()
            elements.append((Kind.CONDITION, 0, 0, 0))
            elements += [(Kind.GLOBAL, code, place, 1 + place) for place, code in enumerate(codes)]
            patches = range(ends[index] - sequences.num_patches[index], ends[index])
            for order, patch in enumerate(patches, 1 + NUM_GLOBALS):
                code, place = sequences.patch_codes[patch], sequences.patch_positions[patch]
                elements.append((Kind.PATCH, int(code), int(place), order))
        if len(elements) < stop:
            boundaries.append(len(elements))
            elements += [(Kind.PADDING, 0, 0, order) for order in range(stop - len(elements))]
    kinds, codes, places, order = np.array(elements, np.int32).reshape(-1, 4).T
    return PackedBatch(
        num_rows=len(rows),
        kinds=kinds.astype(np.uint8),
        codes=codes,
        places=places,
        order=order,
        boundaries=np.array([*boundaries, len(elements)], np.int32),
        labels=sequences.labels[chosen],
        is_conditional=sequences.is_conditional[chosen],
        has_budget=sequences.has_budget[chosen],
        embeddings=None if sequences.embeddings is None else sequences.embeddings[chosen],
        sequences=sequences.numbers[chosen],
    )


def assert_equal(found: PackedBatch, expected: PackedBatch) -> None:
    assert found.num_rows == expected.num_rows
    for field in dataclasses.fields(PackedBatch)[1:]:
        left, right = getattr(found, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), field.name
        if right is not None:
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.dtype == right.dtype, field.name


def lay_out_all(
    seed: int, embedding_size: int | None = 2, row_tokens: int = 40
) -> tuple[Sequences, Packing, PackedRows]:
    counts = np.random.default_rng(seed).integers(0, 30, 60).tolist()
    sequences = make_sequences(counts, seed, embedding_size)
    packing = pack(sequences.lengths, row_tokens=row_tokens, random=np.random.default_rng(seed))
    return sequences, packing, PackedRows(sequences, packing, np.arange(packing.num_rows))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("embedding_size", [None, 2])
def test_layout_is_that_of_a_loop(seed: int, embedding_size: int | None) -> None:
    sequences, packing, rows = lay_out_all(seed, embedding_size)
    whole = rows.cut(0, rows.num_rows)
    is_full = whole.kinds.reshape(rows.num_rows, -1)[:, -1] != Kind.PADDING
    assert is_full.any() and not is_full.all()
    assert_equal(whole, expected_batch(sequences, packing, list(range(packing.num_rows))))
    chosen = [packing.num_rows - 1, 3, 4, 0]
    found = lay_out(sequences, packing, np.array(chosen))
    assert_equal(found, expected_batch(sequences, packing, chosen))


def test_worked_by_hand() -> None:
    sequences = dataclasses.replace(
        make_sequences([2, 0], embedding_size=None),
        global_codes=np.array([[7, 8, 9], [1, 2, 3]], np.int32),
        patch_codes=np.array([50, 60], np.int32),
        patch_positions=np.array([4, 11], np.int32),
    )
    packing = Packing(np.array([1, 0]), np.array([0, 2]), row_tokens=12, num_tokens=10)
    batch = lay_out(sequences, packing, np.array([0]))
    assert batch.kinds.tolist() == [1, 2, 2, 2, 1, 2, 2, 2, 3, 3, 0, 0]
    assert batch.codes.tolist() == [0, 1, 2, 3, 0, 7, 8, 9, 50, 60, 0, 0]
    assert batch.places.tolist() == [0, 0, 1, 2, 0, 0, 1, 2, 4, 11, 0, 0]
    assert batch.order.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.boundaries.tolist() == [0, 4, 10, 12]
    assert batch.sequences.tolist() == sequences.numbers[[1, 0]].tolist()


def test_cutting_and_joining() -> None:
    sequences, packing, rows = lay_out_all(1)
    for start, stop in ((0, 1), (2, 7), (5, packing.num_rows), (4, 4)):
        assert_equal(rows.cut(start, stop), expected_batch(sequences, packing, list(range(start, stop))))
    parts = [rows.cut(0, 3), rows.cut(3, 4), rows.cut(4, packing.num_rows)]
    assert_equal(join(parts), rows.cut(0, packing.num_rows))


def test_rows_no_longer_than_the_fullest_of_them() -> None:
    sequences, packing, rows = lay_out_all(2)
    fills = [
        int(sequences.lengths[packing.sequences[start:stop]].sum())
        for start, stop in zip(packing.starts[:-1], packing.starts[1:], strict=True)
    ]
    first = fills.index(min(fills))  # a row with padding, alone
    for start, stop in ((first, first + 1), (0, packing.num_rows), (2, 2)):
        width = rows.fullest(start, stop)
        assert width == max(fills[start:stop], default=0)
        narrow = dataclasses.replace(packing, row_tokens=width)
        expected = expected_batch(sequences, narrow, list(range(start, stop)))
        assert_equal(rows.cut(start, stop, row_tokens=width), expected)


def test_empty_rows() -> None:
    none = Packing(np.zeros(0, np.int64), np.zeros(3, np.int64), row_tokens=40, num_tokens=0)
    empty = empty_rows(2, row_tokens=40, embedding_size=2)
    assert_equal(empty, lay_out(make_sequences([]), none, np.arange(2)))
    sequences, packing, rows = lay_out_all(1)
    both = join([rows.cut(0, 2), empty])
    assert both.num_rows == 4 and both.num_elements == 160
    assert both.boundaries[-3:].tolist() == [80, 120, 160]
    assert both.num_sequences == rows.cut(0, 2).num_sequences
    assert (both.kinds[80:] == Kind.PADDING).all()
    assert empty_rows(2, row_tokens=40, embedding_size=None).embeddings is None


def test_no_rows() -> None:
    sequences, packing, rows = lay_out_all(1)
    for nothing in (lay_out(sequences, packing, np.zeros(0, np.int64)), rows.cut(3, 3)):
        assert nothing.num_rows == nothing.num_elements == 0 and nothing.boundaries.tolist() == [0]
