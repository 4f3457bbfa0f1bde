"""Intervals and tests, by scipy, seeded.

Letters: M pairs or values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

_RESAMPLES = 2_000
_BATCH_VALUES = 10_000_000  # resampled at once, in memory


@dataclass(frozen=True)
class Interval:
    """A figure of `n` values with its bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean with its percentile bootstrap interval; of one value, or of equal ones, the interval is that value."""
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) < 2 or np.ptp(sample) == 0:
        return Interval(mean, mean, mean, len(sample))
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=_RESAMPLES, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed), batch=max(1, _BATCH_VALUES // len(sample)),
    )  # fmt: skip
    return Interval(
        mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(sample)
    )


def bootstrap_ratio(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Ratio of the means of M pairs with its percentile bootstrap interval, over the pairs. Where the denominator is
    0 in all pairs it is nan; samples in which it is are left out."""
    above, below = (np.asarray(values, np.float64) for values in (numerator, denominator))
    ratio = float(above.mean() / below.mean()) if below.any() else math.nan
    if len(above) < 2 or not below.any() or (np.ptp(above) == 0 and np.ptp(below) == 0):
        return Interval(ratio, ratio, ratio, len(above))
    random = np.random.default_rng(seed)
    samples = (random.integers(len(above), size=len(above)) for _ in range(_RESAMPLES))
    drawn = [above[sample].mean() / below[sample].mean() for sample in samples if below[sample].any()]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(ratio, float(low), float(high), len(above))


def group_jackknife(
    measure: Callable[[np.ndarray], float], num_values: int, *, num_groups: int, confidence: float = 0.95
) -> Interval:
    """A statistic of `num_values` values with its interval by the delete-a-group jackknife (Kott 2001): `measure` is
    given the places of the values that it is taken over. For statistics that resampling with repetitions biases, as it
    does distances between sets. Groups are neighbours, since values may come class by class in turn; the interval is
    Student's."""
    places = np.arange(num_values)
    groups = places * num_groups // num_values
    without = np.array([measure(places[groups != group]) for group in range(num_groups)])
    spread = (num_groups - 1) / num_groups * np.square(without - without.mean()).sum()
    half = float(stats.t.ppf((1 + confidence) / 2, num_groups - 1) * math.sqrt(spread))
    value = measure(places)
    return Interval(value, value - half, value + half, num_values)


def mean_of_few(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of at least one value, such as of each seed, with Student's interval; of one value the interval is nan."""
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, math.nan, math.nan, len(sample))
    half = float(
        stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    )
    return Interval(mean, mean - half, mean + half, len(sample))


@dataclass(frozen=True)
class PairedTest:
    """What a one-sided Wilcoxon signed-rank test says of M paired values."""

    difference: Interval  # mean of ours - reference
    p_value: float  # of "ours is not worse"
    effect: Interval  # matched-pairs rank-biserial correlation, -1 (worse in every pair) to 1, of the pairs that differ
    is_drop: bool  # p_value below the level, and ours worse on average


def paired_drop(
    ours: Sequence[float] | np.ndarray,
    reference: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool,
    level: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Whether `ours` (M,) is worse than `reference` (M,) in pairs. Equal pairs say nothing; where all are equal there
    is no drop, with p = 1. Small M, or ties, are scipy's business (exact or normal distribution)."""
    paired = np.asarray(ours, np.float64) - np.asarray(reference, np.float64)
    gain = paired if higher_is_better else -paired
    p_value = 1.0
    if np.any(gain):
        found: Any = stats.wilcoxon(gain, alternative="less", zero_method="wilcox")
        p_value = float(found.pvalue)
    return PairedTest(
        bootstrap_mean(paired, confidence=confidence, seed=seed),
        p_value,
        _rank_biserial(gain, confidence=confidence, seed=seed),
        bool(p_value < level and gain.mean() < 0),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): the k-th smallest of m times m - k + 1, at least the one before,
    at most 1. What stays below a level then, does so with that probability of a single false finding in all of them."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _rank_biserial(gain: np.ndarray, *, confidence: float, seed: int) -> Interval:
    """(sum of the ranks of gains - sum of those of losses) / sum of all ranks, of |gain|; gain (M,)."""

    def correlation(sample: np.ndarray) -> float:
        differs = sample[sample != 0]
        if not len(differs):
            return 0.0
        ranks = stats.rankdata(np.abs(differs))
        return float((ranks * np.sign(differs)).sum() / ranks.sum())

    value = correlation(gain)
    if len(gain) < 2 or np.ptp(gain) == 0:
        return Interval(value, value, value, len(gain))
    random = np.random.default_rng(seed)
    drawn = [correlation(random.choice(gain, len(gain))) for _ in range(_RESAMPLES // 2)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), len(gain))
