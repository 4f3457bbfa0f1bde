"""Curves of quality by rate, one an image, and what is read off them.

Letters: M images, P points of a curve, each at one count of kept patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import integrate, interpolate, stats

from tatok_pipe.evaluation.statistics import Interval

Statistic = Callable[[np.ndarray], np.ndarray]  # over the images: (..., M) to (...)
_RESAMPLES = 2_000


def area_gain(counts: Sequence[int], ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How far each image's curve lies above its reference on average over the logarithm of the rate, as
    Bjøntegaard's difference (VCEG-M33) averages, by the trapezoidal rule: kept patches (P,) ascending from 1 on and
    values (M, P), twice, to (M,) in the unit of the values."""
    rate = np.log(np.asarray(counts, np.float64))
    return integrate.trapezoid(ours - reference, rate, axis=1) / (rate[-1] - rate[0])


def at_count(counts: Sequence[int], values: np.ndarray, wanted: float) -> np.ndarray:
    """Each image's value at a count between points, (M,), by monotone cubic interpolation (PCHIP): a straight line
    would lie below a concave curve. Kept patches (P,) ascending, values (M, P)."""
    return interpolate.PchipInterpolator(counts, values, axis=1)(wanted)


def corpus_psnr(values: np.ndarray) -> np.ndarray:
    """PSNR of the mean squared error over all images, dB, from the PSNR of each: (..., M) to (...). It is what one
    threshold on squared error serves; images with large errors weigh more than in the mean of PSNR."""
    return -10 * np.log10(np.mean(10 ** (-values / 10), axis=-1))


def worst_tenth(values: np.ndarray) -> np.ndarray:
    """Mean of the lowest tenth, of one image at least: (..., M) to (...)."""
    return np.sort(values, axis=-1)[..., : max(1, values.shape[-1] // 10)].mean(axis=-1)


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def paired_difference(
    ours: np.ndarray, reference: np.ndarray, statistic: Statistic, *, confidence: float, seed: int
) -> Interval:
    """A statistic of ours (M,) less that of the reference (M,), with its percentile bootstrap interval; both are
    resampled with the same images."""

    def difference(left: np.ndarray, right: np.ndarray, axis: int) -> np.ndarray:
        return statistic(np.moveaxis(left, axis, -1)) - statistic(np.moveaxis(right, axis, -1))

    value = float(difference(ours, reference, -1))
    if len(ours) < 2:
        return Interval(value, value, value, len(ours))
    found = stats.bootstrap(
        (ours, reference), difference, paired=True, vectorized=True, n_resamples=_RESAMPLES,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval = found.confidence_interval
    return Interval(value, float(interval.low), float(interval.high), len(ours))
