"""Going on from a finished tokenizer: what is taken of it, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import StackConfig
from tatok_pipe.tokenizer.start import load_start, start_from
from tests.tokenizer.conftest import small_config


@pytest.fixture
def source(tmp_path: Path) -> str:
    torch.manual_seed(1)
    training = {"command": "python -m made", "curve": [1], "held_out_curve": [], "held_out": {}, "seed": 7}
    save_tokenizer(f"{tmp_path}/source", TaTok(small_config("vq")), ladders={}, training=training)
    return f"{tmp_path}/source"


def test_all_weights_are_taken(source: str) -> None:
    config = replace(small_config("vq"), search_passes=3)
    model, start = TaTok(config), load_start(source, config)
    told = start_from(model, start)
    assert told == {
        "fingerprint": start.fingerprint,
        "has_prior": True,
        "training": {"command": "python -m made", "seed": 7},
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, start.model.state_dict()[name]), name


def test_an_entropy_model_of_another_size_starts_anew(source: str) -> None:
    config = replace(small_config("vq"), prior=StackConfig(width=16, depth=1, heads=2))
    model, start = TaTok(config), load_start(source, config)
    own = {name: value.clone() for name, value in model.prior.state_dict().items()}
    assert start_from(model, start)["has_prior"] is False
    for name, value in model.state_dict().items():
        there = own[name[6:]] if name.startswith("prior.") else start.model.state_dict()[name]
        assert torch.equal(value, there), name


def test_another_model_does_not_fit(source: str) -> None:
    config = replace(small_config("vq"), num_globals=4)
    told = rf"training.start_from={source}: a tokenizer of another model than model.num_globals=4 \(there 3\); give"
    with pytest.raises(UserError, match=told):
        load_start(source, config)
    with pytest.raises(
        UserError, match=r"training.start_from=/nowhere: expected a folder with tokenizer.json"
    ):
        load_start("/nowhere", config)
