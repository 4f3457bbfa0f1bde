"""Dynamic Token Filtering (TaTok, arXiv 2605.16384): from the cost of losing each patch token to a keep mask.

Pure maths: no model, no disk, no global. Letters: B images, N patches.

One order serves every rule: a patch matters more than another if its cost is higher or, at equal cost, if it
comes first in raster order. Sums run in float64, so that a rule means the same on every device.

What the `budget` rule bounds. For a dropped set D and a kept set S, the chain rule in raster order gives
H(Z_D | G, Z_S) <= sum of h_i over D, since all that precedes i is either kept or dropped earlier. So with the
`entropy` score at most `value` nats of code information are lost, for a fixed D or one decided causally; a rule
that sorts makes the mask itself information, which the bound does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES, RULES
from tatok_pipe.tokenizer.scores.table import SCORES

PERCENTILES = (
    "percentiles"  # beside the rules in a checkpoint's ladders: rungs [percent of patches, their cost]
)
DEFAULT_KEEP_SHARE = 0.5  # of the patches, on average, where neither a value nor a target is given


@dataclass(frozen=True)
class Filter:
    """A rule with its number: all that decides a mask, given the costs."""

    rule: str
    value: float
    score: str = "gain"
    min_patches: int = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r}: expected one of {', '.join(SCORES)}")
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r}: expected one of {', '.join(RULES)}")
        RULES[self.rule].check(self.value)


def keep_mask(cost: Tensor, filter: Filter) -> Tensor:
    """Which patches stay by one of `RULES`: cost (B, N) finite floats to (B, N) bool. Under every rule the
    `min_patches` most important ones stay."""
    order = _most_important_first(cost)
    cost = cost.double()
    rank = torch.arange(cost.shape[1], device=cost.device).expand_as(order)
    keep = RULES[filter.rule].keep(cost.gather(1, order), rank, filter.value) | (rank < filter.min_patches)
    return torch.zeros_like(keep).scatter_(1, order, keep)


def _most_important_first(cost: Tensor) -> Tensor:
    """(B, N) to the places of each row, int64, in the order of their costs; of equal ones the first comes first."""
    if cost.dtype != torch.float16 or cost.device.type != "cpu":
        return cost.double().argsort(dim=1, descending=True, stable=True)
    # As integers in the same order: NumPy sorts those of 16 bits by their digits, in a tenth of the time.
    bits = cost.contiguous().view(torch.int16).numpy()
    keys = np.where(bits < 0, bits & 0x7FFF, -bits)  # of minus the cost, both zeros alike
    return torch.from_numpy(keys.argsort(axis=1, kind="stable"))


def round_cost(cost: Tensor) -> Tensor:
    """Costs as a dataset records them, float16, so that a mask decided on what is recorded is the one decided now."""
    most = torch.finfo(torch.float16).max
    return cost.clamp(-most, most).half()


def calibrate(cost: Tensor, *, rule: str, target_patches: float, min_patches: int) -> float:
    """The value at which `rule` keeps `target_patches` on average over the images of `cost` (M, N).

    Bisection on a monotone function: deterministic, and as near to the target as the costs allow. Raises
    ValueError for a rule that has nothing to calibrate.
    """
    if rule not in CALIBRATED_RULES:
        raise ValueError(f"rule={rule!r}: only {', '.join(CALIBRATED_RULES)} have a value to calibrate")
    low, high = CALIBRATED_RULES[rule].reach(cost)
    for _ in range(40):
        middle = (low + high) / 2
        kept = keep_mask(cost, Filter(rule, middle, min_patches=min_patches)).sum(1).double().mean().item()
        if (kept < target_patches) == CALIBRATED_RULES[rule].keeps_more_when_higher:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def interpolate(ladder: list[list[float]], target: float) -> float:
    """The value at `target`, from rungs [mean kept patches, or percent, and value], linearly between rungs.

    Raises ValueError where the target lies outside the ladder.
    """
    rungs = sorted(ladder)
    if not rungs or not rungs[0][0] <= target <= rungs[-1][0]:
        reach = f"{rungs[0][0]:.1f} to {rungs[-1][0]:.1f}" if rungs else "nothing"
        raise ValueError(f"{target:.1f}: this checkpoint was calibrated for {reach}")
    for (below, low), (above, high) in zip(rungs, rungs[1:], strict=False):
        if target <= above:
            share = (target - below) / (above - below) if above > below else 0.0
            return low + share * (high - low)
    return rungs[-1][1]


def resolve(
    config: DTFConfig, *, ladders: dict[str, dict[str, list[list[float]]]], num_globals: int, num_patches: int
) -> Filter:
    """A config and a checkpoint's ladders, `ladders[score][rule]`, to a filter.

    Raises ValueError where the target is out of reach or the checkpoint has no ladder for the rule.
    """

    def done(value: float) -> Filter:
        return Filter(config.rule, float(value), score=config.score, min_patches=config.min_patches)

    if config.rule == "none":
        return done(0.0)
    if config.rule == "top_k" and config.value is not None and config.value > num_patches:
        raise ValueError(f"value={config.value:g}: top_k expects 0 to {num_patches}, the patches of an image")
    if config.value is not None:
        return done(config.value)
    target = (
        num_globals + DEFAULT_KEEP_SHARE * num_patches
        if config.target_tokens is None
        else config.target_tokens
    )
    if config.rule == "top_k":
        if not 0 <= target - num_globals <= num_patches:
            raise ValueError(f"target_tokens={target}: expected {num_globals} to {num_globals + num_patches}")
        return done(round(target - num_globals))
    ladder = ladders.get(config.score, {}).get(config.rule if config.percentile is None else PERCENTILES)
    if not ladder:
        raise ValueError(
            f"rule={config.rule}, score={config.score}: this checkpoint carries no calibration for them; give value, "
            "or a checkpoint that tatok_pipe.calibrate wrote"
        )
    if config.percentile is not None:
        try:
            return done(interpolate(ladder, config.percentile))
        except ValueError as error:
            raise ValueError(f"percentile={error}") from None
    try:
        return done(interpolate(ladder, target - num_globals))
    except ValueError as error:
        raise ValueError(
            f"target_tokens={target}: kept patches on average {error} (and {num_globals} globals)"
        ) from None
