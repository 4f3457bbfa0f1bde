from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tatok_pipe.config.load import to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.nn.weights_folder import fingerprint
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import DTFConfig

LADDERS = {"gain": {"threshold": [[2.0, 3.0], [8.0, 1.0]]}}


def save(model: TaTok, folder: Path, *, half: bool = False) -> str:
    return save_tokenizer(str(folder), model, ladders=LADDERS, training={"note": "test"}, half=half)


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_comes_back_as_it_was(
    model: TaTok, images: torch.Tensor, tmp_path: Path, half: bool
) -> None:
    mark = save(model, tmp_path / "checkpoint", half=half)
    loaded = load_tokenizer(str(tmp_path / "checkpoint"))
    assert loaded.fingerprint == mark
    assert loaded.model.config == model.config
    assert (loaded.ladders, loaded.training) == (LADDERS, {"note": "test"})
    for name, tensor in model.state_dict().items():
        expected = tensor.bfloat16().float() if half and tensor.is_floating_point() else tensor
        assert torch.equal(loaded.model.state_dict()[name], expected)
    tokens = loaded.model.tokenize(images, Filter("none", 0))
    assert loaded.model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep).shape == images.shape
    # Saving what was loaded gives the same file, and the fingerprint is a function of it alone.
    assert save(loaded.model, tmp_path / "again", half=half) == mark
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "checkpoint/model.safetensors"
    ).read_bytes()


def test_the_output_of_a_training_stands_for_the_tokenizer_in_it(model: TaTok, tmp_path: Path) -> None:
    mark = save(model, tmp_path / "tokenizer")
    (tmp_path / "checkpoints").mkdir()
    for url in (str(tmp_path), f"{tmp_path}/", f"{tmp_path}/tokenizer", f"file://{tmp_path}"):
        assert load_tokenizer(url).fingerprint == mark
    (tmp_path / "tokenizer/model.safetensors").unlink()
    with pytest.raises(
        UserError, match=f"={tmp_path}/tokenizer: expected a folder with tokenizer.json and model"
    ):
        load_tokenizer(str(tmp_path))


def test_every_weight_and_the_config_are_in_the_fingerprint(model: TaTok) -> None:
    tensors = dict(model.state_dict())
    marks = {fingerprint(tensors, to_dict(model.config))}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        marks.add(fingerprint({**tensors, name: changed}, to_dict(model.config)))
    other = TaTok(type(model.config)(image_size=64, patch_size=16, num_globals=2))
    marks.add(fingerprint(tensors, to_dict(other.config)))
    assert len(marks) == len(tensors) + 2


def test_a_damaged_checkpoint_is_refused_in_one_line(model: TaTok, tmp_path: Path) -> None:
    save(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[:-1], whole[: len(whole) // 2], b"", b"not a checkpoint"):
        weights.write_bytes(damage)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            load_tokenizer(str(tmp_path))
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="fingerprint"):
        load_tokenizer(str(tmp_path))


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.checkpoint=.*nowhere.*expected a folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"format": 99}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="format 3"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_target_out_of_reach_names_the_key(model: TaTok, tmp_path: Path) -> None:
    save(model, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.filter(DTFConfig(target_tokens=5)).value == 3.0
    with pytest.raises(UserError, match=r"dtf\.target_tokens=1000"):
        tokenizer.filter(DTFConfig(target_tokens=1000))
