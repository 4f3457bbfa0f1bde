from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tatok_pipe.evaluation.statistics import bootstrap_mean, bootstrap_ratio, holm, paired_drop


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
