"""How far two token datasets are from each other: their histograms, and the images that both hold. Maths only.

Letters: B images, N patches, K globals, V codes, G groups of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats
from scipy.spatial.distance import jensenshannon, sqeuclidean

NUM_GROUPS = 8  # 35 ways to split a dataset into halves


@dataclass(frozen=True)
class CountDrift:
    """Kolmogorov-Smirnov test of two samples: the largest distance of their distribution functions, and how probable
    one as large is where both are samples of one distribution."""

    distance: float
    p_value: float


def kolmogorov_smirnov(
    ours: np.ndarray, theirs: np.ndarray, *, num_independent: tuple[int, int]
) -> CountDrift:
    """Of two histograms (N + 1,) over the same values. `num_independent` are the numbers of images, which are fewer
    than the rows where an image has several. As `scipy.stats.ks_2samp(method="asymp")`, without a list of all images;
    the p-value is too large, never too small, where many images have equal values."""
    shares = [np.cumsum(each) / each.sum() for each in (ours, theirs)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    first, second = num_independent
    size = max(1, round(first * second / (first + second)))
    return CountDrift(distance, float(stats.kstwo.sf(distance, size)))


def wasserstein(ours: np.ndarray, our_first: int, theirs: np.ndarray, their_first: int) -> float:
    """Wasserstein distance of two histograms whose values begin at `our_first` and `their_first`, in their unit."""
    our_values, their_values = np.arange(len(ours)) + our_first, np.arange(len(theirs)) + their_first
    return float(stats.wasserstein_distance(our_values, their_values, ours, theirs))


def divergence_nats(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms of codes (V,), 0 to ln 2 nats."""
    return float(jensenshannon(ours, theirs)) ** 2


@dataclass(frozen=True)
class SplitNoise:
    """Both datasets are split into halves by image, the same images each time. Halves of the two that share no image
    are held against halves of one dataset, which differ by sampling alone.

    Compared are squared Euclidean distances of code frequencies: a sampling error adds its variance to them, at any
    number of codes, so where both datasets are samples of one distribution the halves of both are on average
    as far apart as those of one. Of Jensen-Shannon divergences that holds at equal numbers of codes alone.
    """

    ratio: float  # mean distance of halves of both over that of halves of one: 1 where nothing but sampling differs
    limit: float  # the quantile of that of halves of one over its mean
    noise_nats: float  # mean Jensen-Shannon divergence of halves of one

    @property
    def is_drift(self) -> bool:
        return self.ratio > self.limit


def split_noise(ours: np.ndarray, theirs: np.ndarray, *, confidence: float) -> SplitNoise | None:
    """Of counts of codes by group of images, (G, V) each. None where a half has no codes."""
    num_groups = len(ours)
    between, within, nats = [], [], []
    for chosen in combinations(range(num_groups), num_groups // 2):
        if 0 not in chosen:
            continue  # the same split as that of its complement
        is_chosen = np.isin(np.arange(num_groups), chosen)
        halves = [each[side].sum(0) for each in (ours, theirs) for side in (is_chosen, ~is_chosen)]
        if not min(half.sum() for half in halves):
            return None
        a, b, c, d = (half / half.sum() for half in halves)
        between.append((sqeuclidean(a, d) + sqeuclidean(c, b)) / 2)
        within.append((sqeuclidean(a, b) + sqeuclidean(c, d)) / 2)
        nats.append((divergence_nats(a, b) + divergence_nats(c, d)) / 2)
    noise, noise_nats = float(np.mean(within)), float(np.mean(nats))
    if not noise:  # every image of a dataset has the same codes
        return SplitNoise(math.inf if any(between) else 1.0, 1.0, noise_nats)
    return SplitNoise(
        float(np.mean(between)) / noise, float(np.quantile(within, confidence)) / noise, noise_nats
    )


def chance_of_equal(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How often two codes are equal that are drawn one of each histogram (V,); NaN where one is empty."""
    total = float(ours.sum()) * float(theirs.sum())
    return float(ours.astype(np.float64) @ theirs) / total if total else math.nan


def equal_share(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The share of equal codes of each image: (B, K), twice, to (B,)."""
    return (ours == theirs).mean(1)


def kept_overlap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Jaccard index of the kept positions of each image: (B, N) bool, twice, to (B,). Two empty sets are equal."""
    either = (ours | theirs).sum(1)
    return np.where(either == 0, 1.0, (ours & theirs).sum(1) / np.maximum(either, 1))


def equal_kept_share(ours: np.ndarray, theirs: np.ndarray, *, keep: np.ndarray) -> np.ndarray:
    """The share of equal codes (B, N) at the positions that both keep, `keep` (B, N) bool, of each image: (B,); NaN
    where there are none."""
    num_both = keep.sum(1)
    num_equal = (keep & (ours == theirs)).sum(1)
    return np.where(num_both == 0, math.nan, num_equal / np.maximum(num_both, 1))
