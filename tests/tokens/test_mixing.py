"""Mixes of token datasets: how often an image of each comes, and what is no mix."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.tokens.format import ROW_GROUP_ROWS
from tatok_pipe.tokens.loading.mix_planner import MixPlanner
from tatok_pipe.tokens.loading.mixing import draw_order, make_mixing, parse_changes
from tatok_pipe.tokens.loading.windows import RowGroups, ShardRows


def plain_order(weights: list[int], count: int) -> list[int]:
    """One draw after the other: the source whose next image is due first, by fractions."""
    drawn, order = [0] * len(weights), []
    for _ in range(count):
        due = [Fraction(2 * had + 1, 2 * weight) for had, weight in zip(drawn, weights, strict=True)]
        order.append(due.index(min(due)))
        drawn[order[-1]] += 1
    return order


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=5), st.lists(st.integers(1, 90), min_size=1, max_size=5)
)
def test_draws_are_those_of_the_divisor_method_however_they_are_cut(
    weights: list[int], cuts: list[int]
) -> None:
    drawn, found = np.zeros(len(weights), np.int64), []
    for count in cuts:
        order = draw_order(weights, drawn.tolist(), count)
        found += order.tolist()
        drawn += np.bincount(order, minlength=len(weights))
    expected = plain_order(weights, sum(cuts))
    counts = [np.bincount(each, minlength=len(weights)) for each in (found, expected)]
    # Draws that are due at one time may change places, by rounding.
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 0.1 * len(found) + 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 5000))
def test_two_sources_have_their_shares_to_a_row(first: int, second: int, count: int) -> None:
    order = draw_order([first, second], [0, 0], count)
    had = np.cumsum(order == 0)
    assert np.abs(had - np.arange(1, count + 1) * first / (first + second)).max() <= 1


def test_every_source_walks_through_epochs_of_its_own() -> None:
    sizes = (3 * ROW_GROUP_ROWS + 5, ROW_GROUP_ROWS // 2)
    groups = RowGroups([[ShardRows("a", sizes[0])], [ShardRows("a", 0), ShardRows("b", sizes[1])]])
    planner = MixPlanner(groups, make_mixing(sizes, [2, 1]), window_rows=777, seed=5)
    position, walked = planner.start(), [list[int](), list[int]()]
    for _ in range(40):
        order = planner.order(position)
        for piece in planner.pieces(position, order, epoch=0):
            begin, stop = piece.numbers
            walked[piece.group.source] += range(begin, stop)
        position = planner.after(position, order)
    assert position.drawn == tuple(map(len, walked)) and sum(position.drawn) == 40 * 777
    assert abs(position.drawn[0] - 40 * 777 * 2 / 3) <= 1
    for source, size in enumerate(sizes):
        rows = np.array(walked[source]) - source * sizes[0]
        epochs = [rows[begin : begin + size] for begin in range(0, len(rows) - size + 1, size)]
        assert len(epochs) > 2 and all(sorted(epoch.tolist()) == list(range(size)) for epoch in epochs)
        # Row groups are shuffled, rows not; of one row group there is one order.
        assert (len({tuple(epoch.tolist()) for epoch in epochs}) > 1) == (size > ROW_GROUP_ROWS)


def test_what_is_no_mix_is_told() -> None:
    for weights, told in (
        ([3, 0], r"weights=\[3, 0\]: expected more than 0 each"),
        ([3, -1], r"weights=\[3, -1\]: expected more than 0 each"),
        ([3, math.inf], "expected more than 0 each"),
        ([1e-300, 1e300], r"=\[1e-300, 1e\+300\]: expected none more than 1e\+12 times another"),
        ([3, 1, 1], r"weights=\[3, 1, 1\]: expected 2 weights, one for each dataset"),
    ):
        with pytest.raises(ValueError, match=told):
            make_mixing([10, 20], weights)
        with pytest.raises(ValueError, match=f"at step 5.*{told.rpartition(': ')[2]}"):
            make_mixing([10, 20], [1, 1], {5: weights})
    with pytest.raises(ValueError, match="at step 0: expected 1 or more"):
        make_mixing([10, 20], [1, 1], {0: [1, 2]})
    assert make_mixing([10, 20], None).weights == (10, 20)
    assert parse_changes(["10000:1:3", "20:0.5:1e2"]) == {10_000: [1, 3], 20: [0.5, 100]}
    assert make_mixing([1, 1], [1, 1], {20: [1, 2], 3: [2, 1]}).changes == ((3, (2, 1)), (20, (1, 2)))
    for changes, told in (
        (["often"], "weight_changes=often: expected STEP:WEIGHT:WEIGHT…, such as 10000:1:3"),
        (["1.5:1:1"], "expected STEP:WEIGHT"),
        (["5:1:2", "5:1:1"], "step 5 comes twice"),
    ):
        with pytest.raises(ValueError, match=told):
            parse_changes(changes)
