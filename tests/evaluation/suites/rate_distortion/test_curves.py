from __future__ import annotations

import math

import numpy as np
import pytest

from tatok_pipe.evaluation.suites.rate_distortion.curves import (
    area_gain,
    at_count,
    corpus_psnr,
    mean,
    paired_difference,
    worst_tenth,
)

RANDOM = np.random.default_rng(0)


def test_area_of_a_hand_worked_curve() -> None:
    """Gains 0, 2, 2 dB at 1, 10, 100 patches: (ln 10 · 1 + ln 10 · 2) / (2 ln 10) = 1.5 dB. On a linear axis it would
    be (9 · 1 + 90 · 2) / 99 = 1.91 dB."""
    reference = np.array([[20.0, 21.0, 25.0], [20.0, 21.0, 25.0]])
    ours = reference + [[0, 2, 2], [-1, -1, -1]]
    np.testing.assert_allclose(area_gain([1, 10, 100], ours, reference), [1.5, -1.0])


def test_a_curve_between_its_points() -> None:
    counts = [0, 26, 56, 90, 128, 192, 256]
    values = np.log1p(np.array([counts, counts])) * [[1.0], [2.0]]
    np.testing.assert_allclose(at_count(counts, values, 90), values[:, 3])
    between = at_count(counts, values, 109.0)
    truth = np.log1p(109.0) * np.array([1.0, 2.0])
    straight = [np.interp(109.0, counts, each) for each in values]
    np.testing.assert_allclose(between, truth, atol=0.01)
    assert (np.abs(between - truth) < np.abs(straight - truth) / 2).all()


def test_corpus_psnr_is_of_the_mean_error() -> None:
    """20 and 40 dB are errors of 0.01 and 0.0001."""
    assert corpus_psnr(np.array([20.0, 40.0])) == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2))


def test_worst_tenth_takes_the_lowest() -> None:
    values = RANDOM.permutation(np.arange(30.0))
    assert worst_tenth(values) == pytest.approx(1.0)  # of 0, 1 and 2
    assert worst_tenth(values[:4]) == values[:4].min()
    assert worst_tenth(np.stack([values, values + 5])).tolist() == [1.0, 6.0]


@pytest.mark.parametrize("statistic", [mean, corpus_psnr, worst_tenth])
def test_differences_find_what_was_planted_and_nothing_else(statistic) -> None:
    reference = RANDOM.normal(25, 4, 60)
    found = paired_difference(reference + 1, reference, statistic, confidence=0.95, seed=0)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1, 1, 1, 60))
    same = paired_difference(reference, reference, statistic, confidence=0.95, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    noise = paired_difference(
        reference + RANDOM.normal(0, 1, 60), reference, statistic, confidence=0.99, seed=0
    )
    assert noise.low < 0 < noise.high


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    reference = RANDOM.normal(25, 4, 80)
    ours = reference + RANDOM.normal(0.3, 1, 80)
    found = paired_difference(ours, reference, corpus_psnr, confidence=0.9, seed=0)
    drawn = []
    for _ in range(4000):
        places = RANDOM.integers(0, 80, 80)
        errors = [np.mean([10 ** (-each / 10) for each in values[places]]) for values in (ours, reference)]
        drawn.append(10 * math.log10(errors[1] / errors[0]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])), abs=0.04)


def test_one_image_has_no_interval() -> None:
    found = paired_difference(np.array([21.0]), np.array([20.0]), mean, confidence=0.95, seed=0)
    assert (found.value, found.low, found.high, found.n) == (1, 1, 1, 1)
