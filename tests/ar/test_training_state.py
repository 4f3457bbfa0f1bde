"""The state of a training as files: it comes back as it was, and a full disk is told as such."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from tatok_pipe import storage
from tatok_pipe.ar import training_state
from tatok_pipe.training.checkpoint_folder import fetched
from tests.ar.trainings import MODEL, TRAINING, load, make_loader, make_trainer, save_part, train
from tests.token_datasets import make_rows, write_token_dataset

SMALL = replace(MODEL, width=16, depth=1)
EXTRA = {"loader": {"epoch": 2, "order": [3, 1]}, "curve": [{"step": 2, "loss": 0.1 + 0.2}], 5: None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a training; every test that changes it takes a copy."""
    url = str(tmp_path_factory.mktemp("tokens") / "out")
    write_token_dataset(url, [make_rows(20)])
    trainer = make_trainer(model=SMALL)
    train(trainer, iter(make_loader(url)), 2)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_part(folder, trainer, EXTRA)
    return folder


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        storage.publish_file(path, storage.join(url, path.name), exclusive=False)


def check_round_trip(url: str, checkpoint: Path, scratch: Path) -> None:
    again = scratch.parent / "again"
    again.mkdir()
    trainer = make_trainer(model=SMALL, seed=1)
    with fetched(url, scratch) as folder:
        assert load(folder, trainer) == json.loads(json.dumps(EXTRA))
        save_part(again, trainer, EXTRA)
    assert not scratch.exists()
    assert trainer.num_steps_done == 2
    assert trainer.average is not None and trainer.average.num_updates == 2
    # Weights, both moments, step counts and the average: the same bytes.
    for path in checkpoint.glob("*.distcp"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_what_was_saved_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    assert sorted(os.listdir(checkpoint)) == [".metadata", "__0_0.distcp", "rank-0.json"]
    check_round_trip(str(checkpoint), checkpoint, tmp_path / "scratch")


@pytest.mark.s3
def test_what_was_saved_comes_back_from_s3(checkpoint: Path, s3_url: str, tmp_path: Path) -> None:
    upload(checkpoint, s3_url)
    assert ".metadata" in storage.list_files(s3_url)
    check_round_trip(s3_url, checkpoint, tmp_path / "scratch")


def test_a_training_without_an_average_has_none(tmp_path: Path) -> None:
    training = replace(TRAINING, optimizer=replace(TRAINING.optimizer, ema_decay=0.0))
    save_part(tmp_path, make_trainer(training, model=SMALL), {})
    trainer = make_trainer(training, model=SMALL, seed=1)
    load(tmp_path, trainer)
    expected = make_trainer(training, model=SMALL).model.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_average_may_begin_or_end_where_a_training_is_resumed(checkpoint: Path, tmp_path: Path) -> None:
    no_average = replace(TRAINING, optimizer=replace(TRAINING.optimizer, ema_decay=0.0))
    trainer = make_trainer(no_average, model=SMALL, seed=1)
    load(checkpoint, trainer)
    assert trainer.average is None and trainer.num_steps_done == 2
    save_part(tmp_path, trainer, {})

    other = make_trainer(model=SMALL, seed=2)
    load(tmp_path, other)
    assert other.average is not None and other.average.num_updates == 0 and other.num_steps_done == 2
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, dict(other.model.named_parameters())[name]), name
        assert torch.equal(weight, other.average.weights[name]), name


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
def test_a_full_disk_is_told_as_such(
    checkpoint: Path, full_disk: Callable[[int], Path], share: float
) -> None:
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    folder = full_disk(max(4096, int(share * num_bytes) // 4096 * 4096))
    with pytest.raises(OSError) as caught:
        save_part(folder, make_trainer(model=SMALL), EXTRA)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value) == "[Errno 28] No space left on device"
    assert not list(folder.glob("rank-*.json")) or not (folder / "rank-0.json").stat().st_size


def test_what_no_system_said_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        failures: Any = {0: (RuntimeError("first\nline"), None), 3: (ValueError("x"), None)}
        raise CheckpointException("save", failures)

    monkeypatch.setattr(training_state.dcp, "save", fail)
    with pytest.raises(OSError) as caught:
        training_state.save(tmp_path, make_trainer(model=SMALL))
    assert str(caught.value) == "RuntimeError: first line; ValueError: x"
