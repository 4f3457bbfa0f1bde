"""What worker 0 tells of a training: lines, curves with pictures, Prometheus' gauges."""

from __future__ import annotations

import logging

import numpy as np

from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.training.curves import Curves

logger = logging.getLogger(__name__)

Figures = dict[str, float]  # by name


class TrainingLog:
    """`losses` are figures by term; `line` has in words what a training tells of itself."""

    def __init__(self, curves: Curves, metrics: TrainingMetrics, *, first_step: int, num_steps: int) -> None:
        self._curves = curves
        self._metrics = metrics
        self._num_steps = num_steps
        metrics.begin(step=first_step, num_steps=num_steps)

    def steps(self, step: int, line: str, figures: Figures, *, losses: Figures, speed: Figures) -> None:
        """Of the steps since the last line; `speed`, with the time of a step as `step_s`, is this machine's."""
        left_s = (self._num_steps - step) * speed["step_s"]
        self._curves.scalars("train", step, figures)
        self._curves.scalars("speed", step, speed)
        self._metrics.logged(step, figures=figures | speed, eta_s=left_s)
        self._metrics.losses(losses, split="train")
        logger.info("step %d/%d %s, %s left", step, self._num_steps, line, format_duration(left_s))

    def held_out(
        self, step: int, line: str, figures: Figures, *,
        losses: Figures | None = None, psnr: Figures | None = None, panel: tuple[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """Of a validation; `psnr` is by which patches are kept, a panel of pixels (H, W, 3) has a name."""
        self._curves.scalars("held_out", step, figures)
        if panel is not None:
            self._curves.picture(f"held_out/{panel[0]}", step, panel[1])
        self._curves.publish()
        self._metrics.losses(losses or {}, split="held_out")
        self._metrics.psnr(psnr or {})
        logger.info("step %d held out %s", step, line)

    def publish(self) -> None:
        """Put the curves beside the checkpoints."""
        self._curves.publish()

    def close(self) -> None:
        self._curves.close()
        self._metrics.close()
