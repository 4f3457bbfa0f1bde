"""The state of a generator's training as files, which any number of processes can read: tensors (weights, optimizer,
average) are `torch.distributed.checkpoint` shards, each process writes its part of them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tatok_pipe.ar.checkpoint_files import LoadPlanner, Reader, Writer
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.errors import UserError

dcp: Any = checkpoint  # it exports save and load in a way that type checkers do not see


def save(folder: Path, trainer: GeneratorTrainer) -> dict[str, int]:
    """Write this process's tensors into an empty local folder; the counters, which `load` needs besides.

    Raises OSError where there is no space, on all processes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a process group it says that it saves alone
            dcp.save(_tensors(trainer), storage_writer=Writer(folder))
    except CheckpointException as error:  # no Exception, and a traceback is its message
        raise _as_os_error(error) from None
    return {
        "num_steps_done": trainer.num_steps_done,
        "num_average_updates": trainer.average.num_updates if trainer.average is not None else 0,
    }


def load(folder: Path, trainer: GeneratorTrainer, counters: dict[str, int]) -> None:
    """Bring weights, optimizer, average and counters to what a checked local folder holds, at any world size. Where it
    has no average, that of the trainer begins at the weights.

    Raises UserError where the folder holds what no training of ours has written.
    """
    state = _tensors(trainer)
    try:
        # Here: torch's own loading tells an error in it as another one.
        names = Reader(folder).read_metadata().state_dict_metadata
        if not any(name.startswith("average.") for name in names):
            state.pop("average", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=Reader(folder), planner=LoadPlanner())
    except pickle.UnpicklingError as error:
        raise _as_foreign(folder, error) from None
    except CheckpointException as error:  # of all processes
        for failure, _ in error.failures.values():
            if isinstance(failure, pickle.UnpicklingError):
                raise _as_foreign(folder, failure) from None
        raise
    trainer.model.load_state_dict(state["model"])
    set_optimizer_state_dict(trainer.model, trainer.optimizer, optim_state_dict=state["optimizer"])
    trainer.num_steps_done = counters["num_steps_done"]
    if trainer.average is not None and "average" in state:
        for name, weight in state["average"].items():
            trainer.average.weights[name].copy_(weight)
        trainer.average.num_updates = counters["num_average_updates"]
    elif trainer.average is not None:
        trainer.average.begin_again()


def _tensors(trainer: GeneratorTrainer) -> dict[str, Any]:
    state: dict[str, Any] = {
        "model": trainer.model.state_dict(),
        "optimizer": get_optimizer_state_dict(trainer.model, trainer.optimizer),
    }
    if trainer.average is not None:
        state["average"] = dict(trainer.average.weights)
    return state


def _as_foreign(folder: Path, error: pickle.UnpicklingError) -> UserError:
    return UserError(
        f"{folder.name}: is no checkpoint of a training: {error}; nothing of it was run. Remove it, and find out who "
        "wrote it"
    )


def _as_os_error(error: CheckpointException) -> OSError:
    """Of all that went wrong on all processes, what a system said, else everything in one line."""
    failures = [failure for failure, _ in error.failures.values()]
    said = next((failure for failure in failures if isinstance(failure, OSError)), None)
    return said or OSError("; ".join(" ".join(f"{type(each).__name__}: {each}".split()) for each in failures))
