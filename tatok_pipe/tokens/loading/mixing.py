"""How several token datasets are mixed: how often an image of each comes, and from which step on that is otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Of weights. Far beyond it a share is 0 in floats, and its images would come at no order.
_MAX_RATIO = 1e12
_EXPECTED_CHANGE = "STEP:WEIGHT:WEIGHT…, such as 10000:1:3, a weight for each dataset"


@dataclass(frozen=True)
class Mixing:
    """Weights of the datasets, by image: with 3 and 1 three images of the first come to one of the second.

    Raises ValueError, in one line, for what is no mix of `num_sources`.
    """

    num_sources: int
    weights: tuple[float, ...]
    changes: tuple[tuple[int, tuple[float, ...]], ...] = ()  # (step, weights from it on), steps ascending

    def __post_init__(self) -> None:
        self._check_weights("weights", self.weights)
        steps = [step for step, _ in self.changes]
        for step, weights in self.changes:
            if step < 1:
                raise ValueError(
                    f"weight_changes at step {step}: expected 1 or more; before it `weights` count"
                )
            self._check_weights(f"weight_changes at step {step}", weights)
        if steps != sorted(set(steps)):
            raise ValueError(f"weight_changes at steps {steps}: expected ascending steps, each once")

    def stage(self, step: int) -> int:
        """How many of the changes have come by the step that is the `step`th, counted from 0."""
        return sum(at <= step for at, _ in self.changes)

    def weights_of(self, stage: int) -> tuple[float, ...]:
        return self.changes[stage - 1][1] if stage else self.weights

    def end_of(self, stage: int) -> int | None:
        """The step at which the next change comes; None where there is none."""
        return self.changes[stage][0] if stage < len(self.changes) else None

    def _check_weights(self, name: str, weights: Sequence[float]) -> None:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        if len(weights) != self.num_sources:
            raise ValueError(f"{name}=[{shown}]: expected {self.num_sources} weights, one for each dataset")
        if not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise ValueError(
                f"{name}=[{shown}]: expected more than 0 each; leave out a dataset that is not to be trained on"
            )
        if max(weights) > _MAX_RATIO * min(weights):
            raise ValueError(
                f"{name}=[{shown}]: expected none more than {_MAX_RATIO:g} times another; leave out a dataset that is "
                "not to be trained on"
            )


def parse_changes(given: Sequence[str]) -> dict[int, list[float]]:
    """Changes that were written as STEP:WEIGHT:WEIGHT…. Raises ValueError for others, and for a step twice."""
    changes: dict[int, list[float]] = {}
    for text in given:
        step, *weights = text.split(":")
        try:
            at, found = int(step), [float(weight) for weight in weights]
        except ValueError:
            raise ValueError(f"weight_changes={text}: expected {_EXPECTED_CHANGE}") from None
        if at in changes:
            raise ValueError(f"weight_changes: step {at} comes twice; keep one of them")
        changes[at] = found
    return changes


def make_mixing(
    num_rows: Sequence[int],
    weights: Sequence[float] | None,
    changes: Mapping[int, Sequence[float]] | None = None,
) -> Mixing:
    """The mix of datasets of `num_rows` rows; without `weights` every image comes as often as any other."""
    ordered = sorted((changes or {}).items())
    return Mixing(
        len(num_rows),
        tuple(map(float, weights or num_rows)),
        tuple((step, tuple(map(float, each))) for step, each in ordered),
    )


def draw_order(weights: Sequence[float], drawn: Sequence[int], count: int) -> np.ndarray:
    """Which source each of the next `count` images is of, (count,) int64, where `drawn` of each have come.

    By the divisor method of Webster and Sainte-Laguë: the kth image of a source (k from 0) is due at (2k + 1) / (2w), w
    its weight, and the earliest comes next. So after m images a source has had m times its share, give or take one:
    after any m, however they are cut into calls.
    """
    shares = np.asarray(weights, np.float64) / sum(weights)
    ahead = np.ceil(shares * count).astype(np.int64) + len(shares) + 1  # more than will be needed of each
    sources = np.repeat(np.arange(len(shares)), ahead)
    numbers = np.concatenate(
        [np.arange(first, first + more) for first, more in zip(drawn, ahead, strict=True)]
    )
    return sources[np.argsort((2 * numbers + 1) / shares[sources], kind="stable")[:count]]
