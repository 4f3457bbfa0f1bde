"""Tensors of a batch: who predicts what, static shapes, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tatok_pipe.ar.batch import Vocabulary, to_tensors
from tatok_pipe.records import Kind
from tatok_pipe.tokens.spec import TokenSpec
from tests.ar.packed import VOCABULARY, Tokens, draw, pack, tensors

TWO = [Tokens([3, 1], [(2, 6), (7, 0)], label=2), Tokens([0, 4], [], label=1)]


def test_what_elements_predict_in_a_worked_example() -> None:
    batch = tensors([TWO], row_tokens=10)  # elements 0 to 4, then 5 to 7, then padding
    assert batch.condition_at.tolist() == [0, 5]
    assert batch.global_at.tolist() == [1, 2, 6, 7]
    assert batch.patch_at.tolist() == [3, 4]
    predictions = zip(
        batch.position_at.tolist(),
        batch.last_positions.tolist(),
        batch.position_targets.tolist(),
        strict=True,
    )
    assert sorted(predictions) == [(2, -1, 2), (3, 2, 7), (4, 7, 9), (7, -1, 9)]
    assert batch.labels.tolist() == [2, 1] and batch.is_conditional.tolist() == [True, True]


def test_a_spot_is_where_an_element_is_in_a_sequence_of_all_places() -> None:
    batch = tensors([[Tokens([1, 0], [(2, 4), (7, 1)])]], row_tokens=7)
    assert batch.spots.tolist() == [0, 1, 2, 3 + 2, 3 + 7, 0, 0]  # the last two are padding
    middle = [[1.0, 1.0]] * 3
    cells = [[float(row), float(column)] for row in range(3) for column in range(3)]
    assert VOCABULARY.coordinates().tolist() == middle + cells
    seven = replace(VOCABULARY, num_globals=0, num_patches=7)  # no square: rows of three, the last one short
    assert seven.coordinates().tolist() == [[1.0, 1.0], *cells[:7]]


def test_shapes_depend_on_the_shape_of_the_batch_alone() -> None:
    drawn = draw(7)
    full, single, empty = (
        tensors(rows, row_tokens=30) for rows in ([drawn[:3], drawn[3:5]], [drawn[:1], []], [[], []])
    )
    for batch in (full, single, empty):
        assert batch.boundaries.shape == (60 // 3 + 2 + 1,)
        assert batch.boundaries[0] == 0 and batch.boundaries[-1] == 60
        assert batch.boundaries.diff().max() <= VOCABULARY.max_length
        assert batch.spots.max() < VOCABULARY.max_length
    assert empty.boundaries.unique().tolist() == [0, 12, 24, 30, 42, 54, 60]


def test_rows_of_the_shortest_sequences_fill_the_bound() -> None:
    shortest = Tokens([0, 0], [])
    batch = tensors([[shortest] * 3, [shortest] * 3], row_tokens=10)
    assert batch.boundaries.diff().tolist() == [3, 3, 3, 1] * 2
    with pytest.raises(ValueError, match="max_stretches=7: the batch has 8"):
        to_tensors(pack([[shortest] * 3] * 2, row_tokens=10), "cpu", vocabulary=VOCABULARY, max_stretches=7)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (Kind.GLOBAL, "codes", 5, "global code 5: expected 0 to 4"),
        (Kind.PATCH, "codes", 7, "patch code 7: expected 0 to 6"),
        (Kind.PATCH, "places", 9, "patch place 9: expected 0 to 8"),
        (Kind.PATCH, "codes", -1, "patch code -1: expected 0 to 6"),
    ],
)
def test_what_is_outside_the_vocabulary_is_refused(kind: Kind, field: str, value: int, message: str) -> None:
    batch = pack([TWO], row_tokens=10)
    values = getattr(batch, field).copy()
    values[np.flatnonzero(batch.kinds == kind)[-1]] = value
    with pytest.raises(ValueError, match=message):
        to_tensors(replace(batch, **{field: values}), "cpu", vocabulary=VOCABULARY)


def test_sequences_of_another_vocabulary_are_refused() -> None:
    for other in (replace(VOCABULARY, num_globals=3), replace(VOCABULARY, num_patches=1)):
        with pytest.raises(ValueError, match="4 globals and up to 5 elements"):
            to_tensors(pack([TWO], row_tokens=10), "cpu", vocabulary=other)


def test_the_vocabulary_is_that_of_a_dataset(token_spec: TokenSpec) -> None:
    assert Vocabulary.from_spec(token_spec) == Vocabulary(3, 16, 512, 70_000)
    assert Vocabulary(3, 16, 512, 70_000).max_length == 20
    with pytest.raises(ValueError, match="at least 1"):
        Vocabulary(3, 0, 512, 512)
