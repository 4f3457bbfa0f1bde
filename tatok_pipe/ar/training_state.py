"""A training's state on disk: a folder that every process writes its part of, and that any number can read.

Tensors (weights, optimizer, average) are `torch.distributed.checkpoint` shards. Beside them every process writes
`rank-<r>.json`: the names, sizes and SHA-256 of its files and of itself, and what is no tensor (counters, place in the
data, log). A folder is whole where the manifests of all its processes are there and every file is what they say;
anything else is told before a byte of it is read as tensors.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint_files import LoadPlanner, Reader, Writer
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.errors import UserError

dcp: Any = checkpoint  # it exports save and load in a way that type checkers do not see

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{8})")
_READ_BYTES = 16 << 20


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The folder of a checkpoint. Attempts differ, so that what one left behind never mixes with another's."""

    step: int
    attempt: str  # 8 hex digits

    def __str__(self) -> str:
        return f"step-{self.step:09d}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        match = _NAME.fullmatch(text)
        return cls(int(match[1]), match[2]) if match else None


class DamagedCheckpoint(Exception):
    """The folder is not whole; the message says what is wrong with it."""


def save_part(
    folder: Path, trainer: GeneratorTrainer, extra: dict[str, Any], *, rank: int, num_ranks: int
) -> None:
    """Write this process's part into an empty local folder; all processes together make the checkpoint.

    `extra` (JSON types) is given back by `read_extra`. Raises OSError where there is no space, on all processes where
    it is the tensors that have none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a process group it says that it saves alone
            dcp.save(_tensors(trainer), storage_writer=Writer(folder))
    except CheckpointException as error:  # no Exception, and a traceback is its message
        raise _as_os_error(error) from None
    manifest = {
        "format": FORMAT,
        "rank": rank,
        "num_ranks": num_ranks,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.iterdir())
        },
        "trainer": {
            "num_steps_done": trainer.num_steps_done,
            "num_average_updates": trainer.average.num_updates if trainer.average is not None else 0,
        },
        "extra": extra,
    }
    # Last, so that a part without its manifest is one that was not finished.
    text = json.dumps(manifest | {"sha256": _digest(manifest)}, allow_nan=False)
    (folder / manifest_name(rank)).write_text(text)


def manifest_name(rank: int) -> str:
    """The file that makes the part of process `rank` whole."""
    return f"rank-{rank}.json"


def load(folder: Path, trainer: GeneratorTrainer) -> None:
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
    counters = _manifests(folder)[0]["trainer"]
    trainer.num_steps_done = counters["num_steps_done"]
    if trainer.average is not None and "average" in state:
        for name, weight in state["average"].items():
            trainer.average.weights[name].copy_(weight)
        trainer.average.num_updates = counters["num_average_updates"]
    elif trainer.average is not None:
        trainer.average.begin_again()


def read_extra(folder: Path) -> dict[str, Any]:
    """What was given to `save_part` as `extra`, by process 0."""
    return _manifests(folder)[0]["extra"]


def list_checkpoints(url: str) -> list[CheckpointName]:
    """The checkpoints below the folder `url`, whole or not, newest first."""
    names = (CheckpointName.parse(name) for name in storage.list_folders(url))
    return sorted((name for name in names if name is not None), reverse=True)


@contextmanager
def fetched(url: str, folder: Path) -> Iterator[Path]:
    """A checked local copy of the checkpoint at `url` in `folder`, or the checkpoint itself where it is local.

    Raises DamagedCheckpoint where it is not whole, OSError where the storage does not answer.
    """
    filesystem, path = storage.open_filesystem(url)
    if storage.is_local(filesystem):
        _check(Path(path))
        yield Path(path)
        return
    folder.mkdir(parents=True)
    try:
        for name in storage.list_files(url):
            with storage.open_stream(storage.join(url, name)) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, _READ_BYTES)
        _check(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prune(url: str, *, newest: CheckpointName, num_to_keep: int) -> None:
    """Remove the checkpoints older than the newest `num_to_keep` whole ones; `newest` is the last that was begun.

    What a killed attempt began goes with its time. One newer than `newest` was passed over when this attempt began:
    it does not count, and goes as soon as there is a whole one. Only names are looked at: a folder counts as whole
    where it has a manifest of every process, so these must be the last that is written.
    """
    passed_over, num_whole = [], 0
    for name in list_checkpoints(url):
        place = storage.join(url, str(name))
        if name > newest:
            passed_over.append(place)
        elif num_whole >= num_to_keep:
            storage.remove_folder(place)
        elif _has_all_manifests(set(storage.list_files(place)), place):
            num_whole += 1
    for place in passed_over if num_whole else []:
        storage.remove_folder(place)


def _has_all_manifests(files: set[str], url: str) -> bool:
    if manifest_name(0) not in files:
        return False
    try:
        num_ranks = int(json.loads(storage.read_bytes(storage.join(url, manifest_name(0))))["num_ranks"])
    except (ValueError, KeyError, TypeError):
        return False
    return all(manifest_name(rank) in files for rank in range(num_ranks))


def _tensors(trainer: GeneratorTrainer) -> dict[str, Any]:
    state: dict[str, Any] = {
        "model": trainer.model.state_dict(),
        "optimizer": get_optimizer_state_dict(trainer.model, trainer.optimizer),
    }
    if trainer.average is not None:
        state["average"] = dict(trainer.average.weights)
    return state


def _manifests(folder: Path) -> list[dict[str, Any]]:
    """By rank. Raises DamagedCheckpoint where one is missing or not what was written."""
    found: list[dict[str, Any]] = []
    num_ranks = 1
    while len(found) < num_ranks:
        path = folder / manifest_name(len(found))
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{path.name} is missing: the checkpoint was not finished") from None
        except ValueError as error:
            raise DamagedCheckpoint(f"{path.name} cannot be read: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found_format = manifest.get("format") if isinstance(manifest, dict) else None
            raise DamagedCheckpoint(f"{path.name}: format {found_format}, expected {FORMAT}")
        if manifest.pop("sha256", None) != _digest(manifest):
            raise DamagedCheckpoint(f"{path.name} is not what was written")
        num_ranks = manifest["num_ranks"]
        found.append(manifest)
    return found


def _check(folder: Path) -> None:
    for manifest in _manifests(folder):
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{name} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(
                    f"{name} has {path.stat().st_size} bytes, was written with {expected['bytes']}"
                )
            if _sha256(path) != expected["sha256"]:
                raise DamagedCheckpoint(f"{name} is not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """The same before it is written and after it is read, and for every change another one."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


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
