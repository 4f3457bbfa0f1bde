"""Curves at Weights & Biases: what its own library writes where it may not reach its server, and where it cannot."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tatok_pipe.errors import UserError
from tatok_pipe.training import weights_and_biases
from tatok_pipe.training.curves import open_curves
from tatok_pipe.training.options import LoggingConfig
from tatok_pipe.training.weights_and_biases import check_wandb, redact_all

from .test_tensorboard import LOSSES, SPEED, scalars

wandb = pytest.importorskip("wandb", reason="tatok_pipe[wandb] is not installed")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
CONFIG = {"input": {"url": "s3://user:secret@bucket/tokens", "urls": ["https://x/y?token=abc"]}, "seed": 3}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield
    wandb.teardown()


def write(folder: Path, *, steps: range, first_step: int = 0) -> None:
    curves = open_curves(str(folder), first_step=first_step, config=CONFIG, wandb_project="tests")
    for step in steps:
        curves.scalars("train", step, LOSSES | {"loss": 7 - step / 100})
        curves.scalars("speed", step, SPEED)
    curves.scalars("held_out", steps[-1], {"loss": 6.9})
    curves.picture("held_out/panel", steps[-1], PIXELS)
    curves.publish()
    curves.close()


def histories(folder: Path) -> list[dict[int, dict[str, Any]]]:
    from tests.wandb_files import read_history

    return [read_history(path) for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))]


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.name.startswith("tatok_pipe.")]


def test_it_has_what_tensorboard_has(tmp_path: Path) -> None:
    write(tmp_path, steps=range(5, 60, 5))
    (history,) = histories(tmp_path)
    assert list(history) == list(range(5, 60, 5))
    panel = {name: history[55].pop(name) for name in list(history[55]) if name.startswith("held_out/panel/")}
    found = {(name, step): value for step, row in history.items() for name, value in row.items()}
    expected = scalars(str(tmp_path / "tensorboard"))
    assert expected.pop(("held_out/panel", 55)) == 0  # a picture, and no scalar
    assert (
        found == {key: pytest.approx(value) for key, value in expected.items()} and len(found) == 11 * 5 + 1
    )
    (path,) = (tmp_path / "wandb").glob(f"offline-run-*/files/{panel['held_out/panel/path']}")
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), PIXELS)


def test_attempts_are_one_run_and_another_training_is_another(tmp_path: Path) -> None:
    write(tmp_path / "a", steps=range(5, 30, 5))
    time.sleep(1.1)  # the library names folders by the second
    write(tmp_path / "a", steps=range(20, 45, 5), first_step=15)
    write(tmp_path / "b", steps=range(5, 10, 5))
    assert [list(each) for each in histories(tmp_path / "a")] == [[5, 10, 15, 20, 25], [20, 25, 30, 35, 40]]
    names = {path.name for path in tmp_path.glob("a/wandb/offline-run-*/*.wandb")}
    id_a = (tmp_path / "a/wandb/run_id").read_text()
    assert names == {f"run-{id_a}.wandb"} and id_a != (tmp_path / "b/wandb/run_id").read_text()


def test_nothing_of_credentials_or_of_the_command_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.wandb_files import read_config

    monkeypatch.setattr("sys.argv", ["worker", "--secret-argument"])
    write(tmp_path, steps=range(5, 10, 5))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    config = read_config(path)
    assert config["input"] == {"url": "s3://***@bucket/tokens", "urls": ["https://x/y?token=***"]}
    assert config["seed"] == 3 and redact_all(CONFIG)["seed"] == 3
    files = [each.read_bytes() for each in (tmp_path / "wandb").rglob("*") if each.is_file()]
    assert not any(b"secret" in each or b"token=abc" in each for each in files)


def test_steps_that_the_run_has_are_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = wandb.init

    def resume(**given: Any) -> Any:
        run = begin(**given)
        run._starting_step = 31  # as after a server's answer that steps up to 30 are there
        return run

    monkeypatch.setattr(wandb, "init", resume)
    write(tmp_path, steps=range(20, 45, 5), first_step=15)
    (history,) = histories(tmp_path)
    assert list(history) == [35, 40]
    assert "steps 15 to 30 stay as an attempt has told them" in caplog.text


def test_a_server_that_is_not_there_is_said_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(weights_and_biases, "_BEGIN_S", 3.0)
    begin_s = time.monotonic()
    curves = open_curves(str(tmp_path), first_step=0, config=CONFIG, wandb_project="tests")
    curves.scalars("train", 5, LOSSES)
    curves.publish()
    assert time.monotonic() - begin_s < 2
    curves.close()
    (told,) = ours(caplog)
    assert "Weights & Biases is told no more, the training goes on: " in told
    assert "connection refused" in told and "\n" not in told
    assert scalars(str(tmp_path / "tensorboard"))["train/loss", 5] == pytest.approx(LOSSES["loss"])


def test_who_is_not_logged_in_hears_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY")
    write(tmp_path, steps=range(5, 30, 5))
    (told,) = ours(caplog)
    assert "No API key configured" in told


def test_disabled_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level(logging.INFO):
        write(tmp_path, steps=range(5, 30, 5))
    assert not ours(caplog) and not list(tmp_path.glob("wandb/*run-*"))


def test_a_missing_package_is_told_before_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_wandb("tests")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(
        UserError, match=r"wandb_project=tests: .* missing; pip install 'tatok_pipe\[wandb\]'$"
    ):
        check_wandb("tests")


@pytest.mark.parametrize("project", ["", "team/project", "a" * 129])
def test_names_that_wandb_refuses_are_refused(project: str) -> None:
    with pytest.raises(ValueError, match="expected a name of 1 to 128 characters"):
        LoggingConfig(wandb_project=project)
