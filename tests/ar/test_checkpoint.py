"""The finished generator on disk: the same nats when it is loaded, and one line where it cannot be."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tatok_pipe.ar.checkpoint import load_generator, save_generator
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.errors import UserError
from tests.ar.packed import SMALL, draw, tensors
from tests.token_datasets import TINY

# The vocabulary of `tests.ar.packed`, as a dataset tells it.
SPEC = replace(TINY, num_patches=9, global_vocab=5, patch_vocab=7, image_size=24)
TRAINING = {"command": "python -m x", "curve": [{"step": 1, "loss": 0.1 + 0.2}]}


def save(model: Generator, url: str, *, config: GeneratorConfig = SMALL) -> None:
    save_generator(url, dict(model.state_dict()), config=config, tokens=SPEC, training=TRAINING)


def check_round_trip(model: Generator, url: str) -> None:
    save(model, url)
    loaded = load_generator(url)
    assert loaded.model.config == SMALL and loaded.model.vocabulary == model.vocabulary
    assert (loaded.tokens, loaded.training) == (SPEC, TRAINING)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    batch = tensors([draw(4)], row_tokens=64)
    with torch.no_grad():
        expected, found = model(batch), loaded.model(batch)
    assert torch.equal(found.total, expected.total)
    assert float(found.total.sum()) > 1
    # Saved again over another one: what is there last counts.
    other = Generator(replace(SMALL, depth=1), model.vocabulary)
    save(other, url, config=other.config)
    assert load_generator(url).model.config.depth == 1
    save(model, url)
    with torch.no_grad():
        assert torch.equal(load_generator(url).model(batch).total, expected.total)


def test_a_generator_comes_back_as_it_was(model: Generator, tmp_path: Path) -> None:
    check_round_trip(model, str(tmp_path / "generator"))
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == [
        "generator.json",
        "generator.safetensors",
    ]


@pytest.mark.s3
def test_a_generator_comes_back_from_s3(model: Generator, s3_url: str) -> None:
    check_round_trip(model, s3_url)


def test_views_and_halves_are_saved_as_they_are_loaded(model: Generator, tmp_path: Path) -> None:
    """Weights may share memory or lie in another order, as those of an average or of a sharded training do."""
    weights = {name: value.t() if value.ndim == 2 else value for name, value in model.state_dict().items()}
    straight = {name: value.t() if value.ndim == 2 else value for name, value in weights.items()}
    save_generator(str(tmp_path), straight, config=SMALL, tokens=SPEC, training={})
    for name, value in load_generator(str(tmp_path)).model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def one_line(url: str) -> str:
    with pytest.raises(UserError) as caught:
        load_generator(url)
    message = str(caught.value)
    assert message.startswith(f"checkpoint={url}: ") and "\n" not in message
    return message


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "generator.json").read_text())
        change(content)
        (folder / "generator.json").write_text(json.dumps(content))

    return damage


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "generator.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (weights(lambda data: data[:-1]), "generator.safetensors is damaged"),
        (weights(lambda data: data[: len(data) // 2]), "generator.safetensors is damaged"),
        (weights(lambda data: b""), "generator.safetensors is damaged"),
        (weights(lambda data: b"\x80\x04not safetensors"), "generator.safetensors is damaged"),
        (lambda folder: (folder / "generator.safetensors").unlink(), "expected a folder with generator.json"),
        (lambda folder: (folder / "generator.json").unlink(), "expected a folder with generator.json"),
        (lambda folder: (folder / "generator.json").write_text('{"format": 1'), "cannot be read"),
        (lambda folder: (folder / "generator.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda folder: (folder / "generator.json").write_text("[]"), "expected format 3 in generator.json"),
        (edit(lambda content: content.update(format=99)), "expected format 3 in generator.json"),
        (edit(lambda content: content["model"].update(width=64)), "of another model: .*expected"),
        (edit(lambda content: content["model"].update(depth=3)), "of another model: .*missing, expected"),
        (edit(lambda content: content["model"].update(condition="none")), "is of another model"),
        # What would take terabytes, or years, to make is not made.
        (edit(lambda content: content["model"].update(width=8 << 20, heads=1 << 16)), "of another model: .*expected"),
        (edit(lambda content: content["model"].update(depth=10**9)), "of another model: depth=1000000000"),
        (edit(lambda content: content["model"].update(num_classes=10**12)), "of another model: .*expected"),
        (edit(lambda content: content["model"].update(heads=5)), "generator.json .*heads=5"),
        (edit(lambda content: content["model"].update(windth=5)), "generator.json .*windth"),
        (edit(lambda content: content.pop("model")), "generator.json .*model"),
        (edit(lambda content: content["vocabulary"].update(num_patches=16)), "is of another model"),
        (edit(lambda content: content["vocabulary"].pop("num_patches")), "generator.json .*num_patches"),
        (edit(lambda content: content["tokens"].pop("dtf")), "generator.json .*dtf"),
        (edit(lambda content: content.pop("training")), "generator.json .*training"),
    ],
)  # fmt: skip
def test_damage_is_one_line(
    model: Generator, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save(model, str(tmp_path))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load_generator(str(tmp_path))
    one_line(str(tmp_path))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "give the output.url of a finished train_ar run" in one_line(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    one_line(str(tmp_path / "file"))


def test_nothing_is_unpickled(model: Generator, tmp_path: Path) -> None:
    save(model, str(tmp_path))
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (ran,)

    for write in (torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))):
        write(Trap(), tmp_path / "generator.safetensors")
        assert "damaged" in one_line(str(tmp_path))
        assert not ran.exists()
    pickle.loads(pickle.dumps(Trap()))
    assert ran.exists()  # the trap would have told
