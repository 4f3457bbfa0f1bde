"""Training goes down on real pictures, resumes exactly, and moves only what its stage is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok_pipe.images.decode import PreprocessConfig, decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.tokenizer.heldout import calibrate_ladders, measure
from tatok_pipe.tokenizer.model import StackConfig, TaTok, TaTokConfig
from tatok_pipe.tokenizer.quantizer import QuantizerConfig
from tatok_pipe.tokenizer.trainer import (
    MixConfig,
    TokenizerTrainer,
    TrainingConfig,
    mixed_masks,
    to_model_input,
)


def build(kind: str = "fsq") -> TaTok:
    torch.manual_seed(0)
    stack = StackConfig(width=32, depth=1, heads=2)
    codebook = QuantizerConfig(kind=kind, levels=[5, 5, 5], codebook_size=64, code_dim=4)
    return TaTok(
        TaTokConfig(
            image_size=32,
            patch_size=8,
            num_globals=2,
            encoder=stack,
            decoder=stack,
            prior=stack,
            global_codebook=codebook,
            patch_codebook=codebook,
        )
    )


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    crops = held_out_crops(crops_per_source=11)
    pixels = [decode_image(crop.image, PreprocessConfig(image_size=32))[0] for crop in crops]
    return to_model_input(np.stack(pixels), "cpu")


def run(trainer: TokenizerTrainer, pictures: Tensor, steps: int) -> list[dict[str, float]]:
    order = torch.Generator()
    out = []
    for _ in range(steps):
        order.manual_seed(trainer.num_steps_done)
        picks = torch.randint(len(pictures), (trainer.config.batch_size,), generator=order)
        out.append(trainer.step(pictures[picks]))
    return out


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_losses_go_down_in_every_stage(pictures: Tensor, kind: str) -> None:
    config = TrainingConfig(
        joint_steps=80, prior_steps=40, decoder_steps=20, batch_size=16, learning_rate=3e-3,
        prior_learning_rate=3e-3, decoder_learning_rate=1e-3, warmup_steps=5,
    )  # fmt: skip
    model = build(kind)
    with torch.no_grad():
        before = measure(model.eval(), pictures, calibrate_ladders(model, pictures), seed=0)
    losses = run(TokenizerTrainer(model, config, seed=0), pictures, config.num_steps)

    def mean(name: str, first: int, last: int) -> float:
        return float(np.mean([loss[name] for loss in losses[first:last]]))

    assert mean("mse", 70, 80) < 0.6 * mean("mse", 0, 10)
    assert mean("patch_nats", 110, 120) < mean("patch_nats", 0, 10) - 0.2
    assert "patch_nats" not in losses[-1] and "mse" not in losses[100]
    after = measure(model.eval(), pictures, calibrate_ladders(model, pictures), seed=0)
    assert after["psnr_none"] > before["psnr_none"] + 3
    assert after["psnr_none"] > after["psnr_globals_only"]


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_a_resumed_run_is_the_uninterrupted_run(pictures: Tensor, kind: str) -> None:
    config = TrainingConfig(joint_steps=4, prior_steps=2, decoder_steps=2, batch_size=8, warmup_steps=1)
    straight = TokenizerTrainer(build(kind), config, seed=1)
    expected = run(straight, pictures, 8)
    first = TokenizerTrainer(build(kind), config, seed=1)
    got = run(first, pictures, 3)
    tensors, counters = first.state_dict()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    torch.manual_seed(99)
    second = TokenizerTrainer(TaTok(first.model.config), config, seed=1)
    second.load_state_dict(tensors, counters)
    got += run(second, pictures, 5)
    assert got == expected
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    with pytest.raises(RuntimeError, match="ended"):
        _ = second.stage


@pytest.mark.parametrize("kind", ["fsq", "vq"])
@pytest.mark.parametrize(
    ("stage", "moves"),
    [("prior", ("prior.",)), ("decoder", ("decoder", "from_", "to_pixels", "dropped"))],
)
def test_a_stage_moves_only_its_own_part(
    pictures: Tensor, kind: str, stage: str, moves: tuple[str, ...]
) -> None:
    steps = {"joint_steps": 0, "prior_steps": 0, "decoder_steps": 0, f"{stage}_steps": 3}
    model = build(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(TokenizerTrainer(model, TrainingConfig(**steps, batch_size=8), seed=0), pictures, 3)  # type: ignore[arg-type]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith(moves) for name in changed)


def test_a_batch_holds_every_kind_of_mask_in_its_share() -> None:
    entropy = torch.rand(40, 64, generator=torch.Generator().manual_seed(0))
    mix = MixConfig(entropy=0.25, random=0.25, globals_only=0.25)
    keep = mixed_masks(entropy, mix, torch.Generator().manual_seed(3))
    counts = keep.sum(1)
    by_entropy = 0
    for row, mask in zip(entropy, keep, strict=True):
        if 0 < mask.sum() < 64 and row[mask].min() > row[~mask].max():
            by_entropy += 1
    # A keep rate near 0 or 1 rounds into its neighbour kind: hence the room of two.
    assert 10 <= (counts == 64).sum() <= 12
    assert 10 <= (counts == 0).sum() <= 12
    assert 8 <= by_entropy <= 10
    assert torch.equal(keep, mixed_masks(entropy, mix, torch.Generator().manual_seed(3)))
    assert not torch.equal(keep, mixed_masks(entropy, mix, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    "options",
    [{"joint_steps": -1}, {"joint_steps": 0, "prior_steps": 0, "decoder_steps": 0}, {"hide_globals": 1.0}],
)
def test_impossible_trainings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TrainingConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        MixConfig(entropy=0.6, random=0.6)


def test_the_measure_counts_what_it_says(pictures: Tensor, tmp_path: Path) -> None:
    model = build().eval()
    ladders = calibrate_ladders(model, pictures)
    figures = measure(model, pictures, ladders, seed=0)
    assert figures["num_images"] == len(pictures)
    assert [row["kept_share"] for row in figures["filtered"]] == [0.75, 0.5, 0.25]
    for rule, rungs in ladders["entropy"].items():
        kept = [rung[0] for rung in rungs]
        assert kept == sorted(kept), rule
    assert figures == measure(model, pictures, ladders, seed=0)
