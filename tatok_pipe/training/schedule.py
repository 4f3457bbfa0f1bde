"""Learning rates by step: linear warm-up, then a cosine, or a plateau that ends in a linear decay (WSD)."""

from __future__ import annotations

import math

from tatok_pipe.config.options import config_dataclass, option


@config_dataclass
class ScheduleConfig:
    shape: str = option(
        "cosine",
        choices=("cosine", "wsd", "constant"),
        help="after the warm-up: cosine to the floor, plateau with a linear decay at the end (warm-up, stable, decay; "
        "training may be prolonged from its plateau), or no decay",
    )
    peak: float = option(4e-4, above=0, help="learning rate after the warm-up", unit="per step")
    warmup_steps: int = option(1_000, at_least=0, help="linear warm-up", unit="steps")
    decay_share: float = option(
        0.2, at_least=0, at_most=1, help="of the steps, those in which wsd decays", unit="share of steps"
    )
    floor_share: float = option(
        0.05, at_least=0, at_most=1, help="learning rate at the end", unit="share of peak"
    )


def learning_rate(config: ScheduleConfig, *, step: int, num_steps: int) -> float:
    """The rate of step `step` (from 0) of `num_steps`. A warm-up longer than the training is cut to half of it."""
    warmup = min(config.warmup_steps, num_steps // 2)
    if step < warmup:
        return config.peak * (step + 1) / warmup
    if config.shape == "constant":
        return config.peak
    if config.shape == "wsd":
        decay = max(1, round(config.decay_share * num_steps))
        left = min(1.0, (num_steps - step) / decay)
    else:
        done = (step - warmup) / max(1, num_steps - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.peak * (config.floor_share + (1 - config.floor_share) * left)
