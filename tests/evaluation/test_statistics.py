from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tatok_pipe.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    group_jackknife,
    holm,
    mean_of_few,
    paired_drop,
)


def test_interval_of_a_mean_is_near_the_normal_one_and_seeded() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean()) and found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.015)
    assert found.high == pytest.approx(values.mean() + half, abs=0.015)
    assert bootstrap_mean(values) == found
    assert bootstrap_mean(values, seed=1) != found
    assert bootstrap_mean(values, confidence=0.5).high < found.high
    alone = bootstrap_mean([3.0])
    assert (alone.value, alone.low, alone.high, alone.n) == (3.0, 3.0, 3.0, 1)


def test_a_planted_drop_is_found_and_is_the_p_value_of_scipy() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(25, 3, 60)
    ours = reference - 0.3 + random.normal(0, 0.5, 60)
    found = paired_drop(ours, reference, higher_is_better=True)
    expected: Any = stats.wilcoxon(ours, reference, alternative="less")
    assert found.is_drop and found.p_value == pytest.approx(expected.pvalue)
    assert found.difference.value == pytest.approx((ours - reference).mean())
    assert -1 <= found.effect.low < found.effect.value < found.effect.high < 0
    # The same as a distance, of which less is better; and the other way round it is a gain.
    assert paired_drop(-ours, -reference, higher_is_better=False).p_value == found.p_value
    assert not paired_drop(reference, ours, higher_is_better=True).is_drop


def test_no_drop_is_invented() -> None:
    random = np.random.default_rng(3)
    reference = random.normal(25, 3, 60)
    same = paired_drop(reference, reference, higher_is_better=True)
    assert (same.is_drop, same.p_value, same.effect.value, same.difference.value) == (False, 1.0, 0.0, 0.0)
    found = [
        paired_drop(reference + random.normal(0, 0.5, 60), reference, higher_is_better=True).is_drop
        for _ in range(40)
    ]
    assert sum(found) <= 6  # two are expected at a level of 5 %


def test_effect_by_hand() -> None:
    # Differences -3, -2, +1, 0: the zero says nothing, ranks 3, 2, 1: (1 - 5) / 6.
    found = paired_drop([1, 2, 5, 7], [4, 4, 4, 7], higher_is_better=True)
    assert found.effect.value == pytest.approx(-4 / 6)
    assert found.effect.n == 4


def test_ratio_of_means_is_near_the_interval_of_the_delta_method() -> None:
    random = np.random.default_rng(0)
    below = random.gamma(9, 1, 400)
    above = 0.9 * below + random.normal(0, 0.5, 400)
    found = bootstrap_ratio(above, below)
    assert found.value == pytest.approx(above.sum() / below.sum()) and found.n == 400
    half = 1.96 * (above - found.value * below).std(ddof=1) / 20 / below.mean()
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.002)
    assert bootstrap_ratio(above, below) == found != bootstrap_ratio(above, below, seed=1)
    assert bootstrap_ratio([2.0, 2.0], [4.0, 4.0]).low == 0.5
    assert np.isnan(bootstrap_ratio([1.0, 2.0], [0.0, 0.0]).value)
    rare = bootstrap_ratio([0.0, 0.0, 3.0], [0.0, 0.0, 4.0])  # most samples have nothing to divide by
    assert (rare.value, rare.low, rare.high) == (0.75, 0.75, 0.75)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 60)
    found = group_jackknife(lambda places: float(values[places].mean()), 60, num_groups=60)
    wanted: Any = stats.t.interval(0.95, 59, loc=values.mean(), scale=stats.sem(values))
    assert (found.value, found.n) == (pytest.approx(values.mean()), 60)
    assert (found.low, found.high) == pytest.approx(wanted)
    # Values of classes in turn: groups are of neighbours, so that each has all classes.
    turns = np.tile(np.arange(10.0), 30)
    assert group_jackknife(lambda places: float(turns[places].mean()), 300, num_groups=10).high == 4.5


def test_the_jackknife_holds_what_is_true_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        values = random.normal(0.0, 1.0, 200)
        found = group_jackknife(lambda places, v=values: float(v[places].std()), 200, num_groups=10)
        hits += found.low <= 1.0 <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_the_mean_of_few_has_students_interval() -> None:
    values = [3.0, 5.0, 4.0]
    found = mean_of_few(values, confidence=0.9)
    wanted: Any = stats.t.interval(0.9, 2, loc=4.0, scale=stats.sem(values))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((4.0, *wanted, 3))
    assert np.isnan(mean_of_few([3.0]).low) and mean_of_few([3.0]).value == 3.0
