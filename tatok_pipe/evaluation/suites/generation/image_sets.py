"""Sets of images beside each other, and what their size alone does to the figures.

Letters: M images, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from tatok_pipe.evaluation.metrics import frechet_distance, inception_score, precision_recall

MIN_IMAGES = 2  # of a Fréchet distance
# Below it balls up to the third neighbour cover nearly everything, and distances are noise.
_MIN_EQUAL_COUNT = 8
_SHARES = (0.25, 0.5, 1.0)  # of the largest count at which all sets can be compared


@dataclass(frozen=True)
class ImageSet:
    features: np.ndarray  # (M, D)
    logits: np.ndarray  # (M, C)

    def __len__(self) -> int:
        return len(self.features)

    def take(self, places: slice | np.ndarray) -> Self:
        return type(self)(self.features[places], self.logits[places])


@dataclass(frozen=True)
class Likeness:
    """Of `num_images` images to real ones; `score` is of the images alone."""

    num_images: int
    distance: float  # Fréchet
    score: float
    precision: float
    recall: float


def compare(ours: ImageSet, real: ImageSet) -> Likeness:
    """Raises ValueError where one of them has fewer than MIN_IMAGES images."""
    precision, recall = precision_recall(ours.features, real.features)
    return Likeness(
        len(ours),
        frechet_distance(ours.features, real.features),
        inception_score(ours.logits),
        precision,
        recall,
    )


@dataclass(frozen=True)
class EqualCounts:
    """Every set against one half of the real images, of as many images on both sides; `floor` is the other half of
    the real images against it. All three have one entry a count; none where there are too few images."""

    counts: list[int]  # ascending
    drawn: dict[str, list[Likeness]]
    floor: list[Likeness]


def at_equal_counts(drawn: dict[str, ImageSet], real: ImageSet, *, seed: int) -> EqualCounts:
    """`seed` is that of the halves. Of a drawn set the first images are taken."""
    order = np.random.default_rng(seed).permutation(len(real))
    most = min(len(real) // 2, *(len(each) for each in drawn.values()))
    half, other = real.take(order[:most]), real.take(order[most : 2 * most])
    counts = sorted({count for share in _SHARES if (count := round(share * most)) >= _MIN_EQUAL_COUNT})

    def along(ours: ImageSet) -> list[Likeness]:
        return [compare(ours.take(slice(count)), half.take(slice(count))) for count in counts]

    return EqualCounts(counts, {told: along(each) for told, each in drawn.items()}, along(other))
