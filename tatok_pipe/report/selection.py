"""Which images the report shows and which it samples, decided from the footers alone. No disk.

Letters: N patches, S shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

GROUPS = ("cheapest", "median", "dearest")
SAMPLE_IMAGES = 2000


@dataclass(frozen=True)
class Pick:
    """One row of a dataset: of the images of a shard that keep `kept` patches the one at place `ordinal`."""

    shard: int
    kept: int
    ordinal: int


def pick_groups(histograms: Sequence[np.ndarray], *, num_each: int) -> dict[str, list[Pick]]:
    """`num_each` images of each of GROUPS by number of kept patches; fewer where there are not enough.

    `histograms[s]` (N + 1,) counts the images of shard s by number of kept patches. Of equal images the first
    ones of the dataset are taken, so that few shards have to be read and not far. No image is in two groups.
    """
    picks: dict[str, list[Pick]] = {group: [] for group in GROUPS}
    total = np.sum(histograms, axis=0, dtype=np.int64) if len(histograms) else np.zeros(1, np.int64)
    num_images = int(total.sum())
    if not num_images:
        return picks
    num_each = min(num_each, max(1, num_images // len(GROUPS)))
    levels = np.flatnonzero(total).tolist()
    median = int(np.searchsorted(np.cumsum(total), (num_images + 1) // 2))
    taken: Counter[tuple[int, int]] = Counter()
    for group, order in (
        ("cheapest", levels),
        ("dearest", levels[::-1]),
        ("median", sorted(levels, key=lambda level: (abs(level - median), level))),
    ):
        picks[group] = _take(histograms, order, num_each, taken)
    return picks


def plan_sample(num_shards: int, shown: Iterable[int], *, max_shards: int) -> tuple[list[int], list[int]]:
    """(shards to take originals from, shards to sample), together at most `max_shards` different ones.

    Originals come first, those of `shown` in order; the sample is spread evenly over what is left.
    """
    originals = list(dict.fromkeys(shown))[:max_shards]
    for count in range(min(num_shards, max_shards), 0, -1):
        sample = [place * num_shards // count for place in range(count)]
        if len({*originals, *sample}) <= max_shards:
            return originals, sample
    return originals, []


def _take(
    histograms: Sequence[np.ndarray], levels: Iterable[int], num: int, taken: Counter[tuple[int, int]]
) -> list[Pick]:
    picks: list[Pick] = []
    for level in levels:
        for shard, histogram in enumerate(histograms):
            while len(picks) < num and taken[shard, level] < histogram[level]:
                picks.append(Pick(shard, level, taken[shard, level]))
                taken[shard, level] += 1
        if len(picks) == num:
            break
    return picks
