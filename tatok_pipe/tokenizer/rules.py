"""Rules of filtering: from costs in order of importance to which of them are kept. `RULES` has them by name.

Imported without torch, as options are. Letters: B images, N patches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Rule(ABC):
    """How a number decides which patches of an image stay."""

    name: str
    help: str
    value_help: str  # what its number is
    least, most = -math.inf, math.inf  # that its number may be
    expected = "a number"

    def check(self, value: float) -> None:
        """Raise ValueError where `value` cannot belong to this rule."""
        if not self.least <= value <= self.most:
            raise ValueError(f"value={value}: {self.name} expects {self.expected}")

    @abstractmethod
    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        """Costs (B, N) float64, the most important first, and their ranks (B, N), 0 for the first, to (B, N) bool."""


class CalibratedRule(Rule):
    """A rule whose number is found for a wanted mean, on a checkpoint's calibration images: fewer patches stay, or
    more, the higher it is."""

    keeps_more_when_higher: bool

    @abstractmethod
    def reach(self, cost: Tensor) -> tuple[float, float]:
        """The lowest and the highest number that make a difference for costs (M, N)."""


class Threshold(CalibratedRule):
    name = "threshold"
    help = "cost > value, one value for the corpus"
    value_help = "cost τ"
    keeps_more_when_higher = False

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        return ranked > value

    def reach(self, cost: Tensor) -> tuple[float, float]:
        return min(float(cost.min()), 0.0), float(cost.max())


class Budget(CalibratedRule):
    """TaTok's own rule (arXiv 2605.16384)."""

    name = "budget"
    help = "drop at most that cost an image"
    value_help = "cost ε"
    least, expected = 0.0, "0 or more"
    keeps_more_when_higher = False

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        within = ranked.flip(1).cumsum(1) <= value  # from the least important on
        # A negative cost could bring the sum back under the budget: dropping has stopped by then.
        return ~within.int().cummin(1).values.bool().flip(1)

    def reach(self, cost: Tensor) -> tuple[float, float]:
        return 0.0, float(cost.double().clamp_min(0).sum(1).max())


class Coverage(CalibratedRule):
    name = "coverage"
    help = "keep that share of the total cost"
    value_help = "share, 0 to 1"
    least, most, expected = 0.0, 1.0, "a share between 0 and 1"
    keeps_more_when_higher = True

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        # Of a total that patches of negative cost lower, no share could be reached.
        worth = ranked.clamp_min(0)
        before = worth.cumsum(1) - worth
        return before < value * worth.sum(1, keepdim=True)

    def reach(self, cost: Tensor) -> tuple[float, float]:
        return 0.0, 1.0


class Proportional(CalibratedRule):
    """As InfoTok (arXiv 2512.16975) shares out tokens: an image gets as many as its loss is worth over the corpus's
    mean. Its loss is here the total of the score, and the patches are those that the score puts first."""

    name = "proportional"
    help = "as many patches as value × the total cost of the image"
    value_help = "patches a unit of cost"
    least, expected = 0.0, "0 or more"
    keeps_more_when_higher = True

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        return rank < (value * ranked.clamp_min(0).sum(1, keepdim=True)).round()

    def reach(self, cost: Tensor) -> tuple[float, float]:
        totals = cost.double().clamp_min(0).sum(1)
        least = float(totals[totals > 0].min()) if bool((totals > 0).any()) else 1.0
        return 0.0, cost.shape[1] / least


class TopK(Rule):
    name = "top_k"
    help = "a fixed count"
    value_help = "patches"
    least, expected = 0.0, "a whole number of patches"

    def check(self, value: float) -> None:
        super().check(value)
        if not float(value).is_integer():
            raise ValueError(f"value={value}: {self.name} expects {self.expected}")

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        return rank < value


class KeepAll(Rule):
    name = "none"
    help = "keep all"
    value_help = ""

    def keep(self, ranked: Tensor, rank: Tensor, value: float) -> Tensor:
        return rank >= 0


RULES: dict[str, Rule] = {
    rule.name: rule for rule in (Threshold(), Budget(), Coverage(), Proportional(), TopK(), KeepAll())
}
CALIBRATED_RULES = {name: rule for name, rule in RULES.items() if isinstance(rule, CalibratedRule)}
