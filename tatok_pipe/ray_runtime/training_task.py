"""What a training brings to the loop that all trainings share (training_loop.py), and what it is given by it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist

from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.training_log import TrainingLog


@dataclass(frozen=True)
class TrainingRun:
    """What the driver has found out and every worker is told; a training adds its own."""

    entry: str  # the command
    command: str  # as it was given
    config: dict[str, Any]
    settings: dict[str, Any]  # of the config what makes the weights; see training/settings.py
    output_url: str
    num_steps: int
    log_every_steps: int
    validate_every_steps: int | None  # None: there is nothing to validate on
    save_every_steps: int
    num_checkpoints: int  # that are kept
    saves_async: bool  # the training goes on while a checkpoint is uploaded
    peak_option: str  # that of the learning rate, for advice
    wandb_project: str | None  # of Weights & Biases, where the curves go too


class StoppedError(Exception):
    """The driver wants an end where no checkpoint can be made yet."""


class Driver:
    """A worker's line to the driver."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._asking: Any = None
        self._wants_stop = False

    def wants_stop(self) -> bool:
        """The newest answer that has come, without waiting for one."""
        if self._asking is None:
            self._asking = self._board.is_stop_requested.remote()
        elif ray.wait([self._asking], timeout=0)[0]:
            self._wants_stop |= ray.get(self._asking)
            self._asking = None
        return self._wants_stop

    def tell(self, message: dict[str, Any]) -> None:
        """How the training ended, unless another message follows."""
        ray.get(self._board.tell.remote(message))

    def fail(self, error: UserError) -> None:
        """`run_training` raises this, the first one of all workers, and nothing is tried again. Return from the loop
        then; the other workers may wait for this one for ever."""
        ray.get(self._board.fail.remote(error))


@dataclass(frozen=True)
class Worker:
    """One process of the training. All of them make the same calls in the same order."""

    rank: int
    num_ranks: int
    device: torch.device
    driver: Driver

    @classmethod
    def set_up(cls, driver: Driver) -> Worker:
        """This process, where Ray Train has started it."""
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        return cls(context.get_world_rank(), context.get_world_size(), device, driver)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def check_stop(self) -> None:
        """Every worker hears of a stop at another moment, so worker 0 decides. Raises StoppedError."""
        wants_stop = self.driver.wants_stop() if self.leads else None
        if ray.train.collective.broadcast_from_rank_zero(wants_stop):
            raise StoppedError

    def gather(self, text: str) -> list[str]:
        """What every worker says."""
        if self.num_ranks == 1:
            return [text]
        answers: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(answers, text)
        return answers


@dataclass(frozen=True)
class Checkpoint:
    """A whole one, in a local folder."""

    name: str
    folder: Path
    counters: dict[str, Any]  # what `Training.save` returned
    extras: list[dict[str, Any]]  # what `Training.extra` did, by rank: as many as there were workers


class Training(Protocol):
    """What is special to a training, on one worker. `log` is worker 0's, None on others."""

    @property
    def num_steps_done(self) -> int: ...

    def begin(self, checkpoint: Checkpoint | None) -> bool:
        """Build all that is trained, as the checkpoint has it. True where something was computed without one that is
        worth a validation and a checkpoint before the first step. May raise StoppedError."""
        ...

    def step(self) -> None:
        """One optimizer step. Raises NotFiniteError on all workers, another UserError maybe on one; no weight moved."""

    def losses_line(self) -> str: ...  # of the steps since the last logged line

    def log_steps(self, log: TrainingLog | None) -> None:
        """Tell of the steps since this was called last."""

    def validate(self, log: TrainingLog | None) -> None:
        """Measure on held-out data, and tell."""

    def find_broken(self) -> str: ...  # what of this worker's state is not finite; empty where all is

    def save(self, folder: Path) -> dict[str, Any]:
        """Write this worker's tensors into an empty folder; the counters that go with them, `num_steps_done` too."""
        ...

    def extra(self) -> dict[str, Any]:
        """What else a checkpoint has, JSON types: curves, place in the data."""
        ...

    def finish(self, changes: list[dict[str, Any]]) -> str:
        """Publish what was trained, and say what and where; `changes` are those of the settings on the way."""
        ...

    def figures(self) -> dict[str, Any]: ...  # for the last line of the run, as things are
