"""NaN and infinity stop a training, and stand in no JSON."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from tatok_pipe.errors import UserError
from tatok_pipe.nn.weights_folder import WeightsFolder
from tatok_pipe.runs.job import job_summary
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.training.finite import check_step


def refuse(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_what_is_not_finite_is_named_and_no_other() -> None:
    check_step({"loss": 1e300, "gradient": 0.0}, step="step 3", advice="")
    with pytest.raises(UserError, match=r"^step 3: gradient, l2 not finite; .* give less, and") as caught:
        check_step({"loss": 1.0, "gradient": math.nan, "l2": math.inf}, step="step 3", advice="give less")
    assert caught.value.exit_code == 2


def test_json_has_null_where_there_is_no_number() -> None:
    value = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": 7, "e": True}}
    text = json.dumps(to_json_types(value), allow_nan=False)
    assert json.loads(text) == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": 7, "e": True}}


def test_a_models_description_is_json_that_all_can_read(tmp_path: Path) -> None:
    folder = WeightsFolder("w.safetensors", "w.json", 1, "checkpoint", "give one")
    folder.write(str(tmp_path), {"w": torch.ones(2)}, {"training": {"curve": [{"loss": math.nan}]}})
    found = json.loads((tmp_path / "w.json").read_text(), parse_constant=refuse)
    assert found["training"]["curve"] == [{"loss": None}]


def test_the_summary_is_json_that_all_can_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tatok_pipe"), job_summary("train_ar") as summary:
        summary.add({"figures": {"loss": math.inf}})
    line = caplog.messages[-1].removeprefix("summary ")
    assert json.loads(line, parse_constant=refuse)["figures"] == {"loss": None}
