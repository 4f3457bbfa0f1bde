"""Sets of images beside each other: halves that share nothing, and figures of equal counts."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_pipe.evaluation.suites.generation.image_sets import ImageSet, at_equal_counts, compare


def normal(count: int, *, seed: int, shift: float = 0.0) -> ImageSet:
    random = np.random.default_rng(seed)
    return ImageSet(random.normal(shift, 1, (count, 6)), random.normal(size=(count, 5)))


@pytest.mark.parametrize(
    ("num_drawn", "num_real", "counts"),
    [(128, 200, [25, 50, 100]), (40, 200, [10, 20, 40]), (128, 17, [8]), (128, 15, []), (3, 200, [])],
)
def test_counts(num_drawn: int, num_real: int, counts: list[int]) -> None:
    found = at_equal_counts(
        {"a": normal(num_drawn, seed=1), "b": normal(300, seed=2)}, normal(num_real, seed=3), seed=0
    )
    assert found.counts == counts
    assert [[each.num_images for each in along] for along in (*found.drawn.values(), found.floor)] == [
        counts
    ] * 3


def test_halves_share_no_image_and_drawn_ones_meet_the_first_half() -> None:
    real = normal(32, seed=0)
    order = np.random.default_rng(4).permutation(32)
    half, other = real.take(order[:16]), real.take(order[16:])
    found = at_equal_counts({"half": half, "other": other}, real, seed=4)
    assert found.drawn["half"][-1].distance == pytest.approx(0, abs=1e-9)
    assert found.drawn["half"][-1].precision == found.drawn["half"][-1].recall == 1
    assert found.drawn["other"] == found.floor
    assert found.floor[-1] == compare(other, half) and found.floor[-1].distance > 0.1
