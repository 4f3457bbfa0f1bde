"""Where the curves of a training go: TensorBoard's file beside the checkpoints, and Weights & Biases where it is asked
for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tatok_pipe import storage
from tatok_pipe.training.tensorboard import TensorBoard
from tatok_pipe.training.weights_and_biases import WeightsAndBiases


class CurveWriter(Protocol):
    """What it cannot write it says, and a training never ends or waits for it."""

    def scalars(self, group: str, step: int, figures: dict[str, float]) -> None: ...

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Pixels (H, W, 3) uint8."""

    def publish(self) -> None:
        """Put what was told beside the checkpoints."""

    def close(self) -> None: ...


class Curves:
    """A writer that tells all of `writers`."""

    def __init__(self, writers: Sequence[CurveWriter]) -> None:
        self._writers = writers

    def scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        for writer in self._writers:
            writer.scalars(group, step, figures)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        for writer in self._writers:
            writer.picture(name, step, pixels)

    def publish(self) -> None:
        for writer in self._writers:
            writer.publish()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_curves(
    output_url: str, *, first_step: int, config: dict[str, Any], wandb_project: str | None
) -> Curves:
    """Of the training at `output_url`, which goes on from `first_step`."""
    writers: list[CurveWriter] = [TensorBoard(storage.join(output_url, "tensorboard"), first_step=first_step)]
    if wandb_project is not None:
        run = WeightsAndBiases(output_url, project=wandb_project, config=config, first_step=first_step)
        writers.append(run)
    return Curves(writers)
