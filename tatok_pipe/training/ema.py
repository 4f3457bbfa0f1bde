"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the weights of `model`, kept beside them, split over processes as they are.

    The decay of update u is min(decay, (1 + u) / (10 + u)): the first averages are not those of the initialisation.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._model = model
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        pairs = [
            (local_part(self.weights[name]), local_part(p.detach()))
            for name, p in self._model.named_parameters()
        ]
        for mean, now in pairs:
            mean.lerp_(now, 1 - decay)

    @torch.no_grad()
    def adopt(self) -> None:
        """The model goes on from the averaged weights, and a new average begins."""
        for name, parameter in self._model.named_parameters():
            local_part(parameter.detach()).copy_(local_part(self.weights[name]))
        self.num_updates = 0

    @torch.no_grad()
    def begin_again(self) -> None:
        """A new average begins at the weights as they are."""
        for name, parameter in self._model.named_parameters():
            local_part(self.weights[name]).copy_(local_part(parameter.detach()))
        self.num_updates = 0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            mean, now = local_part(self.weights[name]), local_part(parameter.detach())
            kept = now.clone()
            now.copy_(mean)
            mean.copy_(kept)


def local_part(value: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]
