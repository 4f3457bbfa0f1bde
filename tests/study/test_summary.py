"""Ratios of arms against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tatok_pipe.commands.study.design import Cell
from tatok_pipe.commands.study.results import Result
from tatok_pipe.commands.study.summary import Comparison, Done, Row, compare
from tatok_pipe.evaluation.statistics import Interval

NAME = "distance_classifier"


def row(arm: str, distances: dict[int, float], half: float = 0.0) -> Row:
    """By seed."""
    done = [
        Done(Cell(arm, seed, "steps", {}), {"likeness": Result({"num_images": 9, NAME: about(value, half)})})
        for seed, value in distances.items()
    ]
    return Row(arm, "steps", tuple(done), confidence=0.95)


def about(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_seeds_are_compared_in_pairs() -> None:
    # However far seeds are apart, the arm is always twice as good.
    found = compare(row("arm", {0: 5.0, 1: 50.0, 2: 7.0}), row("fixed", {0: 10.0, 1: 100.0, 2: 14.0}), NAME)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((2.0, 2.0, 2.0, 3))


def test_the_interval_is_that_of_a_t_test() -> None:
    ours, theirs = np.array([4.0, 5.0, 7.0]), np.array([8.0, 9.0, 21.0])
    found = compare(row("arm", dict(enumerate(ours))), row("fixed", dict(enumerate(theirs))), NAME)
    wanted = stats.ttest_rel(np.log(theirs), np.log(ours)).confidence_interval(0.95)
    assert math.log(found.low) == pytest.approx(wanted.low) and math.log(found.high) == pytest.approx(
        wanted.high
    )


def test_one_seed_has_the_intervals_of_both() -> None:
    found = compare(row("arm", {0: 10.0}, half=3.0), row("fixed", {0: 20.0}, half=8.0), NAME)
    assert found.value == pytest.approx(2.0)
    assert math.log(found.high / found.value) == pytest.approx(0.5)  # of 0.3 and 0.4
    assert found.low == pytest.approx(2.0**2 / found.high)


def test_seeds_that_only_one_has_are_left_out() -> None:
    found = compare(row("arm", {0: 10.0, 3: 1.0}), row("fixed", {0: 20.0, 1: 99.0}), NAME)
    assert (found.value, found.n) == pytest.approx((2.0, 1))
    assert math.isnan(compare(row("arm", {0: 10.0}), row("fixed", {1: 20.0}), NAME).value)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.1, 2.0, "better"), (0.3, 0.9, "worse"), (0.9, 1.1, "undecided"), (math.nan, math.nan, "undecided")],
)
def test_a_verdict_is_where_one_lies(low: float, high: float, verdict: str) -> None:
    assert Comparison("arm", "fixed", "steps", NAME, Interval(1.0, low, high, 3)).verdict == verdict
