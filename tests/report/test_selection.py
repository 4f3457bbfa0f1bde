from __future__ import annotations

import itertools

import numpy as np
import pytest

from tatok_pipe.report.selection import Pick, pick_groups, plan_sample


def expand(histograms: list[np.ndarray]) -> list[tuple[int, Pick]]:
    """Every image as (kept patches, pick), in the order of the dataset if a shard's images are sorted."""
    return [
        (kept, Pick(shard, kept, ordinal))
        for shard, histogram in enumerate(histograms)
        for kept, number in enumerate(histogram.tolist())
        for ordinal in range(number)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_a_sorted_list(seed: int) -> None:
    random = np.random.default_rng(seed)
    histograms = [random.integers(0, 4, 9) for _ in range(int(random.integers(1, 5)))]
    images = expand(histograms)
    groups = pick_groups(histograms, num_each=3)
    num = min(3, max(1, len(images) // 3))

    cheapest = sorted(images, key=lambda image: (image[0], image[1].shard, image[1].ordinal))[:num]
    assert groups["cheapest"] == [pick for _, pick in cheapest]
    dearest = sorted(images, key=lambda image: (-image[0], image[1].shard, image[1].ordinal))[:num]
    assert [pick.kept for pick in groups["dearest"]] == [kept for kept, _ in dearest]
    median = sorted(kept for kept, _ in images)[(len(images) - 1) // 2]
    assert groups["median"][0].kept == median or len(images) < 9  # else its image may be taken already
    everything = [pick for group in groups.values() for pick in group]
    assert len(set(everything)) == len(everything) == 3 * num
    assert set(everything) <= {pick for _, pick in images}


def test_equal_images_come_from_the_first_rows_of_the_first_shards() -> None:
    histograms = [np.array([0, 5]), np.array([0, 5])]
    groups = pick_groups(histograms, num_each=2)
    assert groups["cheapest"] == [Pick(0, 1, 0), Pick(0, 1, 1)]
    assert groups["dearest"] == [Pick(0, 1, 2), Pick(0, 1, 3)]
    assert groups["median"] == [Pick(0, 1, 4), Pick(1, 1, 0)]


@pytest.mark.parametrize("num_images", [0, 1, 2, 3])
def test_few_images(num_images: int) -> None:
    histograms = [np.array([0, num_images, 0])]
    groups = pick_groups(histograms, num_each=4)
    assert [len(groups[group]) for group in ("cheapest", "dearest", "median")] == [
        int(num_images > place) for place in range(3)
    ]


def test_nothing_to_pick() -> None:
    assert not any(pick_groups([], num_each=4).values())
    assert not any(pick_groups([np.array([3, 3, 3])], num_each=0).values())


@pytest.mark.parametrize(
    ("num_shards", "max_shards"), list(itertools.product([1, 3, 10, 100], [0, 1, 5, 24, 200]))
)
def test_no_more_shards_are_read_than_allowed(num_shards: int, max_shards: int) -> None:
    shown = [place for place in (0, 7, 7, 3) if place < num_shards]
    originals, sample = plan_sample(num_shards, shown, max_shards=max_shards)
    assert len({*originals, *sample}) <= max_shards
    assert originals == list(dict.fromkeys(shown))[:max_shards]
    assert sorted(set(sample)) == sample
    if max_shards >= num_shards:
        assert sample == list(range(num_shards))


def test_the_sample_is_spread_evenly() -> None:
    assert plan_sample(100, [], max_shards=4) == ([], [0, 25, 50, 75])
