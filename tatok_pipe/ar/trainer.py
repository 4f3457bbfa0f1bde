"""Training of the generator, one process: packed batches in, optimizer steps out. Knows neither Ray nor files.

The loss of a step is the sum of all nats of its sequences (positions and codes, END among them) over the number of
codes in them, whatever the number of processes, micro-batches and rows: a step at another world size is the same step.

Letters: T elements of a micro-batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tatok_pipe.ar.batch import BatchTensors
from tatok_pipe.ar.loss_parts import LossParts
from tatok_pipe.ar.model import Generator, Nats
from tatok_pipe.ar.options import TrainingConfig
from tatok_pipe.seeds import hash_seed
from tatok_pipe.training.ema import WeightAverage, local_part
from tatok_pipe.training.finite import check_step
from tatok_pipe.training.schedule import learning_rate

# Where a step is not finite.
_ADVICE = (
    "give a smaller training.schedule.peak, or training.precision=fp32 (where the weights had gone astray before, "
    "remove the newest of the checkpoints too)"
)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw, over all processes."""

    losses: LossParts
    grad_norm: Tensor  # (), before clipping
    learning_rate: float


class LossGraph(nn.Module):
    """The forward pass to one number, as a module, so that data parallelism can wrap it."""

    def __init__(self, model: Generator, *, z_loss: float) -> None:
        super().__init__()
        self.model = model
        self.z_loss = z_loss

    def forward(self, batch: BatchTensors) -> tuple[Tensor, Nats]:
        """(sum of nats, z-loss included, (); the nats of every element)."""
        nats: Nats = self.model(batch)
        loss = nats.position.sum() + nats.code.sum()
        if self.z_loss:
            loss = loss + self.z_loss * nats.z.sum()
        return loss, nats


class GeneratorTrainer:
    """A generator, its optimizer, the average of its weights and the step counter.

    `network` is a LossGraph around `model`, or what data parallelism made of it; it must average gradients over
    processes. `set_sync` gets True before the pass whose gradients are to be exchanged, False before the others of a
    step. Randomness (dropout) of step s comes from (seed, rank, s), so a resumed run draws what an uninterrupted
    one would have drawn.
    """

    def __init__(
        self,
        model: Generator,
        network: nn.Module,
        config: TrainingConfig,
        *,
        num_steps: int,
        device: torch.device,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        set_sync: Callable[[bool], None] = lambda is_last: None,
    ) -> None:
        self.model = model
        self.network = network
        self.config = config
        self.num_steps = num_steps
        self.device = device
        self.num_steps_done = 0
        self._seed = seed
        self._rank = rank
        self._num_ranks = num_ranks
        self._set_sync = set_sync
        self._precision = config.precision_on(device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimizer.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            fused=True,
        )
        self.average = WeightAverage(model, decay=optimizer.ema_decay) if optimizer.ema_decay else None

    def step(self, batches: Sequence[BatchTensors], *, num_codes: int) -> StepResult:
        """One optimizer step on this process's micro-batches; `num_codes` counts those of all processes.

        Every process must have the same number of micro-batches; they may hold padding alone. Raises UserError, on all
        processes, where the loss or the gradient is not finite; no weight has moved then.
        """
        rate = learning_rate(self.config.schedule, step=self.num_steps_done, num_steps=self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash_seed(self._seed, self._rank, self.num_steps_done))
        self.network.train()
        losses = LossParts.zeros(self.model.vocabulary, device=self.device)
        # Data parallelism takes the mean over processes, the loss is a sum over them.
        scale = self._num_ranks / max(1, num_codes)
        for number, batch in enumerate(batches):
            self._set_sync(number == len(batches) - 1)
            with self._autocast():
                loss, nats = self.network(batch)
            (loss * scale).backward()
            losses.add(batch, nats)
        norm = _full(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm))
        losses = losses.summed_over_processes()
        # Both are the same on all processes, so that all of them stop, or none.
        nats, gradient = torch.stack([losses.sums[:3].sum(), norm.double()]).tolist()
        check_step({"loss": nats, "gradient": gradient}, step=f"step {self.num_steps_done}", advice=_ADVICE)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps_done += 1
        if self.average is not None:
            self.average.update()
        return StepResult(losses, norm, rate)

    def find_broken(self) -> str:
        """What of this process's part of the state is not finite, and so is no checkpoint; empty where all is."""
        kinds: dict[str, list[Tensor]] = {"weights": [p.detach() for p in self.model.parameters()]}
        kinds["optimizer"] = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        if self.average is not None:
            kinds["average of weights"] = list(self.average.weights.values())
        return ", ".join(name for name, tensors in kinds.items() if not _are_finite(tensors))

    @torch.no_grad()
    def validate(self, steps: Iterator[Sequence[BatchTensors]]) -> LossParts:
        """The losses of held-out batches over all processes, with the averaged weights where there are such."""
        self.network.eval()
        losses = LossParts.zeros(self.model.vocabulary, device=self.device)
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            for batches in steps:
                for batch in batches:
                    with self._autocast():
                        _, nats = self.network(batch)
                    losses.add(batch, nats)
        return losses.summed_over_processes()

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    parts = [local_part(tensor) for tensor in tensors]
    return bool(torch.stack([part.isfinite().all() for part in parts]).all()) if parts else True


def _full(value: Tensor) -> Tensor:
    """A tensor that is split over processes as a whole one."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
