"""From the costs of a tokenizer's calibration images to the ladders that its checkpoint carries.

Letters: M images, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatok_pipe.tokenizer.analysis import analyse
from tatok_pipe.tokenizer.dtf import PERCENTILES, Filter, calibrate, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES

# Shares of patches that the rungs of a ladder keep on average.
RUNGS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
PERCENTS = (1, 2, 5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 95, 98, 99)

Ladders = dict[str, dict[str, list[list[float]]]]  # by score, then rule or PERCENTILES: rungs [where, value]


def calibrate_ladders(model: TaTok, images: Tensor, *, min_patches: int = 1) -> Ladders:
    """For each score: by rule, rungs [mean kept patches, value], and by percent of all patches [percent, cost],
    measured on images (M, 3, H, W)."""
    costs = analyse(model, images, controls=False).costs
    return {score: ladders_of(cost, min_patches=min_patches) for score, cost in costs.items()}


def ladders_of(cost: Tensor, *, min_patches: int) -> dict[str, list[list[float]]]:
    """The ladders of one score, from its costs (M, N)."""
    ladders: dict[str, list[list[float]]] = {}
    for rule in CALIBRATED_RULES:
        ladders[rule] = []
        for share in RUNGS:
            value = calibrate(cost, rule=rule, target_patches=share * cost.shape[1], min_patches=min_patches)
            kept = keep_mask(cost, Filter(rule, value, min_patches=min_patches)).sum(1).double().mean()
            ladders[rule].append([kept.item(), value])
    shares = torch.tensor([percent / 100 for percent in PERCENTS], dtype=torch.float64, device=cost.device)
    ordered = cost.double().flatten().sort().values
    picked = ordered[(shares * (len(ordered) - 1)).round().long()]  # torch.quantile takes 16 M values at most
    ladders[PERCENTILES] = [
        [float(percent), value] for percent, value in zip(PERCENTS, picked.tolist(), strict=True)
    ]
    return ladders
