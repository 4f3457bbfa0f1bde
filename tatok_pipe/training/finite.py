"""NaN and infinity: where a training stops, and what stands in JSON instead."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tatok_pipe.errors import UserError


class NotFiniteError(UserError):
    """Of a step; all processes raise it, or none."""


def check_step(figures: Mapping[str, float], *, step: str, advice: str) -> None:
    """The rule of all trainings: a step whose losses or gradient norms (`figures`) are not all finite is not taken.

    To be called before a weight moves. Raises NotFiniteError, which names the figures; `advice` says what to change.
    """
    if broken := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise NotFiniteError(
            f"{step}: {', '.join(broken)} not finite; no weight was moved by it, the last checkpoint is from before: "
            f"{advice}, and the same command goes on from there"
        )
