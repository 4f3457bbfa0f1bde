"""The loop that all trainings share, one worker without Ray: what is done when, saved, gone back to, and told."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from pyarrow.fs import LocalFileSystem

from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime import training_loop
from tatok_pipe.ray_runtime.checkpoints import STORAGE_MARKER
from tatok_pipe.ray_runtime.training_loop import TrainingLoop
from tatok_pipe.ray_runtime.training_task import Checkpoint, StoppedError, TrainingRun, Worker


class Counting:
    """A training whose weight is the sum of the steps done."""

    is_ahead = False
    breaks_at = -1

    def __init__(self, run: TrainingRun, worker: Worker) -> None:
        self._worker = worker
        self.num_steps_done, self.weight = 0, 0.0
        self.did: list[str] = []

    def begin(self, checkpoint: Checkpoint | None) -> bool:
        if checkpoint is None and self.is_ahead:
            self._worker.check_stop()
        if checkpoint is not None:
            self.num_steps_done = checkpoint.counters["num_steps_done"]
            self.weight = float((checkpoint.folder / "weight").read_text())
            self.did = [f"from {len(checkpoint.extras)}", *checkpoint.extras[0]["did"]]
        return checkpoint is None and self.is_ahead

    def step(self) -> None:
        self.num_steps_done += 1
        self.weight += self.num_steps_done
        if self.num_steps_done == self.breaks_at:
            self.weight = float("nan")
        self.did.append(str(self.num_steps_done))

    def losses_line(self) -> str:
        return f"weight {self.weight:g}"

    def log_steps(self, log: Any) -> None:
        self.did.append("log")
        log.steps(self.num_steps_done, self.losses_line(), {}, losses={}, speed={"step_s": 2.0})

    def validate(self, log: Any) -> None:
        self.did.append("validate")
        log.held_out(self.num_steps_done, self.losses_line(), {"weight": self.weight})

    def find_broken(self) -> str:
        return "" if self.weight == self.weight else "weight"

    def save(self, folder: Path) -> dict[str, Any]:
        self.did.append("save")
        (folder / "weight").write_text(str(self.weight))
        return {"num_steps_done": self.num_steps_done}

    def extra(self) -> dict[str, Any]:
        return {"did": list(self.did)}

    def finish(self, changes: list[dict[str, Any]]) -> str:
        return f"{self.weight:g} {json.dumps(changes)}"

    def figures(self) -> dict[str, Any]:
        return {"weight": self.weight}


class World:
    """What Ray and the driver would say."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.stops_at = -1
        self.leaving: dict[
            int, tuple[list[str], float | None]
        ] = {}  # nodes and seconds left, by calls before
        self.num_calls = 0
        self.training: Any = None

    def wants_stop(self) -> bool:
        return self.training.num_steps_done == self.stops_at

    def tell(self, message: dict[str, Any]) -> None:
        self.told = message

    def preemption(self) -> Any:
        nodes, left_s = self.leaving.get(self.num_calls, ([], None))
        self.num_calls += 1
        deadline_ms = None if left_s is None else int((time.time() + left_s) * 1000)
        return SimpleNamespace(preempted_node_ids=nodes, deadline_ms=deadline_ms) if nodes else None


class Silent:
    def __init__(self, entry: str) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / STORAGE_MARKER).write_text("")
    place = SimpleNamespace(build_checkpoint_path_from_name=str, storage_filesystem=LocalFileSystem())
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_rank=lambda: 0, get_storage=lambda: place
    )  # fmt: skip

    def report(
        _: Any, *, checkpoint: Any, checkpoint_dir_name: str, checkpoint_upload_fn: Any, **__: Any
    ) -> None:
        checkpoint_upload_fn(checkpoint, checkpoint_dir_name)

    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_preemption_info", world.preemption)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(training_loop, "TrainingMetrics", Silent)
    return world


def train(world: World, folder: Path, *, kind: type[Counting] = Counting, **changes: Any) -> Counting:
    options: dict[str, Any] = {
        "entry": "train_x", "command": "", "config": {}, "settings": {"rate": 1}, "output_url": str(folder),
        "num_steps": 7, "log_every_steps": 2, "validate_every_steps": 3, "save_every_steps": 3,
        "num_checkpoints": 2, "saves_async": False, "peak_option": "training.rate", "wandb_project": None,
    }  # fmt: skip
    run = TrainingRun(**(options | changes))

    def make(run: TrainingRun, worker: Worker) -> Any:
        world.training = kind(run, worker)
        return world.training

    driver: Any = world
    TrainingLoop(make, run, Worker.set_up(driver)).run()
    return world.training


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*"))


def test_what_is_done_in_which_order(world: World, tmp_path: Path) -> None:
    done = train(world, tmp_path)
    assert " ".join(done.did) == "1 2 log 3 validate save 4 log 5 6 log validate save 7 log validate save"
    assert world.told == {"step": 7, "made": "28 []", "figures": {"weight": 28.0, "workers": 1}}
    assert steps(tmp_path) == [6, 7]
    without = train(world, tmp_path, validate_every_steps=None, num_steps=8)
    assert " ".join(without.did[-3:]) == "8 log save"


def test_a_start_that_was_computed_is_looked_at_and_saved(world: World, tmp_path: Path) -> None:
    class Ahead(Counting):
        is_ahead = True

    world.stops_at = 1
    done = train(world, tmp_path, kind=Ahead)
    assert " ".join(done.did) == "validate save 1 save" and steps(tmp_path) == [0, 1]
    assert world.told["step"] == 1 and world.told["made"] == ""
    again = train(world, tmp_path, kind=Ahead)
    assert " ".join(again.did) == "from 1 validate save 1"  # nothing is saved again


def test_a_stop_before_there_is_anything_leaves_nothing(world: World, tmp_path: Path) -> None:
    class Ahead(Counting):
        is_ahead = True

    world.stops_at = 0
    train(world, tmp_path, kind=Ahead)
    assert world.told == {} and steps(tmp_path) == []
    with pytest.raises(StoppedError):
        world.training.begin(None)


def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.stops_at = 5
    assert train(world, tmp_path).weight == 15
    assert steps(tmp_path) == [3, 5]
    (newest,) = (tmp_path / "checkpoints").glob("step-000000005-*")
    (newest / "weight").write_text("16.0")
    world.stops_at = -1
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path).weight == 28
    assert f"{newest}: weight is not what was written; going back to the one before" in caplog.messages
    assert any(each.startswith("resumed at step 3 from step-000000003-") for each in caplog.messages)


@pytest.mark.parametrize("attempt", ["00000000", "ffffffff"])
def test_a_damaged_checkpoint_is_replaced_by_the_next_of_its_step(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, attempt: str
) -> None:
    """Whatever the order of the names of both attempts."""
    world.stops_at = 6
    train(world, tmp_path)
    assert steps(tmp_path) == [3, 6]
    (newest,) = (tmp_path / "checkpoints").glob("step-000000006-*")
    damaged = newest.rename(newest.with_name(f"step-000000006-{attempt}"))
    (damaged / "weight").write_text("16.0")
    assert train(world, tmp_path).weight == 21
    assert steps(tmp_path) == [3, 6] and not damaged.exists()
    world.stops_at = -1
    with caplog.at_level(logging.INFO):
        assert train(world, tmp_path).weight == 28
    assert any(each.startswith("resumed at step 6 from step-000000006-") for each in caplog.messages)


def test_changed_settings_are_told_and_written_down(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stops_at, rate in ((2, 1), (4, 2), (5, 2), (-1, 3)):
        world.stops_at = stops_at
        train(world, tmp_path, settings={"rate": rate})
    changes = [{"step": 2, "settings": {"rate": [1, 2]}}, {"step": 5, "settings": {"rate": [2, 3]}}]
    assert world.told["made"] == f"28 {json.dumps(changes)}"
    assert "from step 5 on: rate=3 (2 before)" in caplog.messages


def test_a_state_that_is_not_finite_is_not_saved(world: World, tmp_path: Path) -> None:
    class Breaking(Counting):
        breaks_at = 5

    told = "^step 6: weight not finite; no checkpoint is written of them.* give a smaller training.rate, and"
    with pytest.raises(UserError, match=told):
        train(world, tmp_path, kind=Breaking)
    assert steps(tmp_path) == [3]


def test_nodes_that_leave_have_a_checkpoint_at_once_and_a_farewell(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """News before step 2; a second node before step 4, whose time is nearly over before step 6."""
    one, two = ["a"], ["a", "b"]
    world.leaving = {
        1: (one, None),
        2: (one, None),
        3: (two, 60.0),
        4: (two, 30.0),
        5: (two, 1.0),
        6: (two, 0.5),
    }
    with caplog.at_level(logging.INFO):
        done = train(world, tmp_path, save_every_steps=100, validate_every_steps=None, log_every_steps=100)
    assert " ".join(done.did) == "1 save 2 3 save 4 5 save 6 7 log save"
    told = [each for each in caplog.messages if "leaving" in each]
    assert told == [f"a node is leaving: checkpoint at step {step}" for step in (1, 3, 5)]


def test_whoever_waits_is_told_before_the_first_logged_line(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "_FIRST_LINE_S", -1.0)
    with caplog.at_level(logging.INFO):
        train(world, tmp_path, log_every_steps=4)
    lines = [each for each in caplog.messages if each.startswith("step") and "held out" not in each]
    assert lines == ["step 1/7 weight 1", "step 4/7 weight 10, 6 s left", "step 7/7 weight 28, 0 s left"]


def test_another_disk_is_told(world: World, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / STORAGE_MARKER).unlink()
    with pytest.raises(
        UserError, match=f"output.url={tmp_path}: node .* sees another folder there than the driver"
    ):
        train(world, tmp_path)
