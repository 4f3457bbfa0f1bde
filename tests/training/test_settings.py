"""What is changed where a training is resumed: found by name, and refused where it would come to nothing."""

from __future__ import annotations

import json

import pytest

from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.commands.train_ar.run import list_settings
from tatok_pipe.config.load import load_config, to_dict
from tatok_pipe.errors import RefusedError
from tatok_pipe.training.settings import check_changes, find_changes, flatten, show_changes


def test_flat_names_by_hand() -> None:
    config = {"a": {"b": 1, "c": {"d": [2, 3]}, "cc": 4}, "e": None}
    assert flatten(config) == {"a.b": 1, "a.c.d": [2, 3], "a.cc": 4, "e": None}
    assert flatten(config, without=["a.c", "e"]) == {"a.b": 1, "a.cc": 4}


def test_changes_by_hand() -> None:
    found = find_changes({"a": 1, "b": 2.0, "gone": 3}, {"a": 1, "b": 2.5, "new": "x"})
    assert found == {"b": [2.0, 2.5], "gone": [3, None], "new": [None, "x"]}
    assert show_changes({"b": [2.0, 2.5]}) == "b=2.5 (2.0 before)"


@pytest.mark.parametrize(("num_steps_done", "is_refused"), [(7, False), (8, True), (9, True)])
def test_changes_that_no_step_is_left_for_are_refused(num_steps_done: int, is_refused: bool) -> None:
    given = {"num_steps_done": num_steps_done, "num_steps": 8, "output": "out"}
    check_changes({"a": 1}, {"a": 1}, **given)
    if not is_refused:
        check_changes({"a": 1}, {"a": 2}, **given)
        return
    with pytest.raises(
        RefusedError, match=rf"^output.url=out: .* {num_steps_done} steps .* a=2 \(1 before\)"
    ):
        check_changes({"a": 1}, {"a": 2}, **given)


def test_a_generators_settings_are_those_that_make_its_weights() -> None:
    def settings(*argv: str, num_steps: int = 10) -> dict[str, object]:
        config = load_config(TrainArConfig, list(argv), prog="train_ar", description="")
        # As a checkpoint gives them back.
        return json.loads(json.dumps(list_settings(to_dict(config), num_steps=num_steps)))

    usual = settings()
    assert find_changes(usual, settings()) == {}
    for argument in (
        "output.url=x", "workers.max=3", "logging.every_steps=1", "checkpoints.keep=9", "training.microbatch_rows=1",
        "training.compile=no", "training.shard=no", "validation.every_steps=3", "training.epochs=1",
    ):  # fmt: skip
        assert find_changes(usual, settings(argument)) == {}, argument
    for argument, before in (
        ("training.schedule.peak=0.5", 4e-4),
        ("training.optimizer.ema_decay=0.5", 0.0),
        ("training.optimizer.z_loss=0.5", 0.0),
        ("training.batch_tokens=8192", 262_144),
        ("drop_condition=0.5", 0.1),
        ("validation.share=0.5", 0.01),
        ("seed=7", 0),
    ):
        name, _, value = argument.partition("=")
        assert find_changes(usual, settings(argument)) == {name: [before, json.loads(value)]}
    assert find_changes(usual, settings(num_steps=20)) == {"training.steps": [10, 20]}
