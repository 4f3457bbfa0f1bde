"""Training goes down on real pictures, resumes exactly, and moves only what its stage is about."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.analysis import analyse, decode, psnr
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.heldout import measure
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.model_card import model_card
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokenizer.trainer import TokenizerTrainer, to_model_input
from tatok_pipe.tokenizer.training_log import TrainingCurves
from tatok_pipe.tokenizer.training_options import (
    DecoderMixConfig,
    DiscriminatorConfig,
    LossConfig,
    MixConfig,
    TrainingConfig,
)


def build(kind: str = "fsq") -> TaTok:
    torch.manual_seed(0)
    stack = StackConfig(width=32, depth=1, heads=2)
    grid = GridStackConfig(width=32, depth=1, heads=2, attend_every=1)
    codebook = GlobalQuantizerConfig(kind=kind, levels=[5, 5, 5], codebook_size=64, code_dim=4)
    return TaTok(
        TaTokConfig(
            image_size=32,
            patch_size=8,
            num_globals=2,
            search_passes=0,
            encoder=grid,
            decoder=grid,
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
        start="random", joint_steps=80, prior_steps=40, decoder_steps=20, batch_size=16, learning_rate=3e-3,
        prior_learning_rate=3e-3, decoder_learning_rate=1e-3, warmup_steps=5, ema_decay=0.9,
        mix=MixConfig(gain=0.4, entropy=0.1, random=0.2),
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
    # Random directions of the linear codec are no nothing: 18 dB before the first step.
    assert after["psnr_none"] > before["psnr_none"] + 2
    assert after["psnr_none"] > after["psnr_globals_only"]


EVERYTHING = LossConfig(
    perceptual=0.1,
    adversarial=0.2,
    adversarial_start_step=2,
    discriminator=DiscriminatorConfig(width=8, depth=1, norm="spectral"),
    rate=0.01,
)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("fsq", LossConfig(perceptual=0)), ("vq", LossConfig(perceptual=0)), ("fsq", EVERYTHING)],
)
def test_a_resumed_run_is_the_uninterrupted_run(pictures: Tensor, kind: str, loss: LossConfig) -> None:
    config = TrainingConfig(
        start="random", joint_steps=5, prior_steps=2, decoder_steps=2, batch_size=8, microbatch_size=5, warmup_steps=1,
        ema_decay=0.9, loss=loss,
    )  # fmt: skip
    straight = TokenizerTrainer(build(kind), config, seed=1)
    expected = run(straight, pictures, 9)
    for first_steps in (4, 6):
        first = TokenizerTrainer(build(kind), config, seed=1)
        got = run(first, pictures, first_steps)
        tensors, counters = first.state_dict()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        torch.manual_seed(99)
        second = TokenizerTrainer(TaTok(first.model.config), config, seed=1)
        second.load_state_dict(tensors, counters)
        got += run(second, pictures, 9 - first_steps)
        assert got == expected
        for name, tensor in straight.model.state_dict().items():
            assert torch.equal(tensor, second.model.state_dict()[name]), name
        with pytest.raises(RuntimeError, match="ended"):
            _ = second.stage
    if loss is EVERYTHING:
        assert "adversarial" not in expected[1] and {"adversarial", "discriminator"} <= set(expected[2])
        assert {"perceptual", "patch_rate_nats", "global_rate_nats"} <= set(expected[0])


def test_micro_batches_are_one_batch(pictures: Tensor) -> None:
    plain = MixConfig(gain=0, random=0, globals_only=0)
    config = TrainingConfig(
        start="random", joint_steps=3, prior_steps=2, decoder_steps=0, batch_size=12, warmup_steps=1, hide_globals=0,
        mix=plain,
        loss=LossConfig(perceptual=0.1, evenness=0),
    )  # fmt: skip
    whole = TokenizerTrainer(build(), config, seed=0)
    parts = TokenizerTrainer(build(), replace(config, microbatch_size=5), seed=0)
    for expected, got in zip(run(whole, pictures, 5), run(parts, pictures, 5), strict=True):
        for losses in (expected, got):
            losses.pop("evenness", None)  # of the codes that are seen together
        assert got == pytest.approx(expected, rel=1e-4)


def test_every_kind_of_mask_has_its_share_whatever_the_micro_batches(pictures: Tensor) -> None:
    config = TrainingConfig(
        start="random",
        joint_steps=0,
        prior_steps=0,
        decoder_steps=4,
        batch_size=20,
        warmup_steps=1,
        loss=LossConfig(perceptual=0),
    )
    whole = TokenizerTrainer(build(), config, seed=0)
    parts = TokenizerTrainer(build(), replace(config, microbatch_size=1), seed=0)
    synthesis = []
    for expected, got in zip(run(whole, pictures, 4), run(parts, pictures, 4), strict=True):
        costs = expected.pop("drop_cost", 0), got.pop("drop_cost", 0)  # means over rows, per pass
        synthesis.append(min(costs) > 0)
        assert min(costs) > 0 or costs == (0, 0)
        assert got == pytest.approx(expected, rel=1e-4)
    assert synthesis == [False, False, False, True]  # it is dear, and comes in the last quarter


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(pictures: Tensor) -> None:
    config = TrainingConfig(start="random", joint_steps=3, prior_steps=0, decoder_steps=0, batch_size=8, warmup_steps=1,
                            mix=MixConfig(entropy=0.0), loss=LossConfig(perceptual=0))  # fmt: skip
    trainer = TokenizerTrainer(build(), config, seed=0)
    run(trainer, pictures, 1)
    with torch.no_grad():
        trainer.model.decoder.to_pixels.bias[0] = torch.inf
    with pytest.raises(UserError, match=r"step 1 \(joint\): .*mse.* not finite"):
        run(trainer, pictures, 1)
    assert trainer.num_steps_done == 1


def test_every_stage_ends_with_the_average_of_its_weights(pictures: Tensor) -> None:
    config = TrainingConfig(
        start="random", joint_steps=4, prior_steps=1, decoder_steps=0, batch_size=8, warmup_steps=0, learning_rate=1e-2,
        ema_decay=0.9, loss=LossConfig(perceptual=0),
    )  # fmt: skip
    trainer = TokenizerTrainer(build(), config, seed=0)
    weight = trainer.model.decoder.to_pixels.weight
    seen = [weight.detach().clone()]
    for _ in range(3):
        run(trainer, pictures, 1)
        seen.append(weight.detach().clone())
    without = TokenizerTrainer(build(), replace(config, ema_decay=0.0), seed=0)
    run(without, pictures, 4)
    seen.append(without.model.decoder.to_pixels.weight.detach())
    run(trainer, pictures, 1)
    mean = seen[0]
    for number, now in enumerate(seen[1:]):
        mean = mean.lerp(now, 1 - min(0.9, (1 + number) / (10 + number)))
    assert torch.allclose(weight, mean, atol=1e-7) and not torch.allclose(weight, seen[4], atol=1e-3)
    before = weight.detach().clone()
    run(trainer, pictures, 1)
    assert torch.equal(weight, before)


def test_a_weight_on_the_rate_makes_codes_cheaper(pictures: Tensor) -> None:
    def nats(rate: float) -> float:
        config = TrainingConfig(
            joint_steps=60, prior_steps=40, decoder_steps=0, batch_size=16, learning_rate=3e-3,
            prior_learning_rate=3e-3, warmup_steps=5, loss=LossConfig(perceptual=0, rate=rate), ema_decay=0.9,
        )  # fmt: skip
        model = build()
        run(TokenizerTrainer(model, config, seed=0), pictures, config.num_steps)
        return analyse(model.eval(), pictures, controls=False).surprisal.sum(1).mean().item()

    assert nats(0.03) < 0.8 * nats(0.0)


def test_the_head_learns_what_masks_cost(pictures: Tensor) -> None:
    """After the decoder's stage its order is nearer to synthesis than pixel variance is."""
    config = TrainingConfig(
        start="random", joint_steps=300, prior_steps=0, decoder_steps=100, batch_size=16, learning_rate=3e-3,
        decoder_learning_rate=1e-3, warmup_steps=5, loss=LossConfig(perceptual=0), ema_decay=0.9,
        mix=MixConfig(gain=0.25, drop_cost=0.25, random=0.25), decoder_mix=DecoderMixConfig(gain=0.25, synthesis=0.5),
    )  # fmt: skip
    model = build()
    losses = run(TokenizerTrainer(model, config, seed=0), pictures, config.num_steps)
    assert losses[-1]["drop_cost"] < 0.7 * losses[0]["drop_cost"]
    costs = analyse(model.eval(), pictures).costs
    order = {name: cost.argsort(1).argsort(1).double() for name, cost in costs.items()}
    distance = {name: (order[name] - order["synthesis"]).abs().mean().item() for name in order}
    assert distance["drop_cost"] < distance["variance"] < distance["random"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_losses_together_give_finite_steps_in_every_stage(pictures: Tensor, precision: str) -> None:
    config = TrainingConfig(
        start="random", joint_steps=4, prior_steps=1, decoder_steps=2, batch_size=8, warmup_steps=1,
        precision=precision,
        loss=EVERYTHING,
    )  # fmt: skip
    trainer = TokenizerTrainer(build(), config, seed=0)
    assert trainer.discriminator is not None
    before = [parameter.detach().clone() for parameter in trainer.discriminator.parameters()]
    losses = run(trainer, pictures, 7)
    assert all(np.isfinite(list(each.values())).all() for each in losses)
    assert all(value.isfinite().all() for value in trainer.state_dict()[0].values())
    after = trainer.discriminator.parameters()
    # Biases at the end have no gradient while no logit has reached its margin.
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True) if old.ndim > 1]
    assert len(moved) == 3 and all(moved)


@pytest.mark.parametrize("kind", ["fsq", "vq"])
@pytest.mark.parametrize(
    ("stage", "moves"),
    [
        ("prior", ("prior.",)),
        ("decoder", ("decoder.", "drop_cost_head.")),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_moves_only_its_own_part(
    pictures: Tensor, kind: str, stage: str, moves: tuple[str, ...], precision: str
) -> None:
    steps = {"joint_steps": 0, "prior_steps": 0, "decoder_steps": 0, f"{stage}_steps": 3}
    model = build(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainingConfig(start="random", **steps, batch_size=8, precision=precision)  # type: ignore[arg-type]
    run(TokenizerTrainer(model, config, seed=0), pictures, 3)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(name.startswith(moves) for name in changed)
    assert all(any(name.startswith(prefix) for name in changed) for prefix in moves)


@pytest.mark.parametrize(
    "options",
    [
        {"joint_steps": -1},
        {"joint_steps": 0, "prior_steps": 0, "decoder_steps": 0},
        {"hide_globals": 1.0},
        {"ema_decay": -0.1},
        {"microbatch_size": 0},
        {"learning_rate": 0.0},
        {"mix": MixConfig(synthesis=0.1)},
        {
            "joint_steps": 10,
            "decoder_steps": 0,
            "loss": LossConfig(adversarial=0.1, adversarial_start_step=10),
        },
    ],
)
def test_impossible_trainings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    "options", [{"log_l2": 0}, {"rate": -1.0}, {"perceptual_features": "vgg"}, {"adversarial": -0.1}]
)
def test_impossible_losses_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LossConfig(**options)


def test_the_measure_counts_what_it_says(pictures: Tensor) -> None:
    model = build().eval()
    ladders = calibrate_ladders(model, pictures)
    figures = measure(model, pictures, ladders, seed=0)
    assert figures["num_images"] == len(pictures)
    assert [row["kept_share"] for row in figures["filtered"]] == [0.75, 0.5, 0.25, 0.22]
    found = analyse(model, pictures)
    keep = keep_mask(found.costs["synthesis"], Filter("top_k", 8))
    expected = psnr(decode(model, found, keep), pictures).mean().item()
    assert figures["filtered"][1]["psnr"]["synthesis"] == pytest.approx(expected)
    codes = found.patch_codes.flatten().tolist()
    shares = [codes.count(code) / len(codes) for code in set(codes)]
    assert figures["patch_codes_used_share"] == len(shares) / 125
    assert figures["patch_codes_perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert figures == measure(model, pictures, ladders, seed=0)


def test_a_tokenizer_without_globals_and_filtering_is_trained_and_measured(pictures: Tensor) -> None:
    """The baseline that adaptive tokens are compared with."""
    plain = {"gain": 0, "random": 0, "globals_only": 0}
    config = TrainingConfig(
        start="random", joint_steps=3, prior_steps=2, decoder_steps=2, batch_size=8, warmup_steps=1,
        mix=MixConfig(**plain),
        decoder_mix=DecoderMixConfig(**plain, synthesis=0), loss=LossConfig(perceptual=0),
    )  # fmt: skip
    model = TaTok(replace(build().config, num_globals=0))
    losses = run(TokenizerTrainer(model, config, seed=0), pictures, 7)
    assert losses[3]["global_nats"] == 0 and all("drop_cost" not in each for each in losses)
    figures = measure(model.eval(), pictures, calibrate_ladders(model, pictures), seed=0)
    assert figures["psnr_all_but_globals_shuffled"] == figures["psnr_none"] != figures["psnr_globals_only"]
    assert model_card(model.config, CARD | {"held_out": figures}, fingerprint="0" * 64, num_weights=1)


def test_figures_of_one_image_have_no_spread_and_no_other_image(pictures: Tensor) -> None:
    model = build().eval()
    figures = measure(model, pictures[:1], calibrate_ladders(model, pictures), seed=0)
    for name in ("default_tokens_std", "psnr_globals_shuffled", "psnr_all_but_globals_shuffled"):
        assert figures[name] is None
    card = model_card(
        model.config,
        CARD | {"held_out": figures, "changes": [{"step": 5, "settings": {"training.loss.l1": [0.5, 1.0]}}]},
        fingerprint="0" * 64,
        num_weights=1,
    )
    assert "±" not in card.partition("|---")[2]
    assert "with another image's globals no figure (one image)" in card
    assert "- from step 5 on with training.loss.l1=1.0 (0.5 before)" in card
    pair = measure(model, pictures[:2], calibrate_ladders(model, pictures), seed=0)
    assert pair["default_tokens_std"] >= 0 and pair["psnr_globals_shuffled"] is not None


def test_falling_behind_the_start_is_told_after_its_patience_and_once() -> None:
    curves = TrainingCurves()
    told = []
    for step, half in (
        (0, 20.0),
        (100, 19.5),
        (200, 19.9),
        (300, 19.9),
        (400, 19.9),
        (500, 20.0),
        (600, 19.0),
    ):
        curves.held_out.append({"step": step, "psnr_all": 25.0, "psnr_half": half})
        told.append(curves.falls_behind(step))
    assert told == [False, False, False, True, False, False, False]
    random = TrainingCurves(held_out=[{"step": 100, "psnr_all": 9.0}, {"step": 900, "psnr_all": 1.0}])
    assert not random.falls_behind(900)


def test_slowing_down_halves_all_but_the_entropy_model(pictures: Tensor) -> None:
    config = TrainingConfig(
        joint_steps=1, prior_steps=1, decoder_steps=1, batch_size=8, warmup_steps=0, ema_decay=0,
        loss=LossConfig(perceptual=0), learning_rate=1e-3, decoder_learning_rate=1e-3, prior_learning_rate=1e-3,
    )  # fmt: skip
    trainer = TokenizerTrainer(build("vq"), config, seed=0)
    trainer.slow_down()
    stages, rates = [], []
    for _ in range(3):
        stages.append(trainer.stage)
        rates.append(run(trainer, pictures, 1)[0]["learning_rate"])
    assert stages == ["decoder", "joint", "prior"]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3])  # the joint one is that of the entropy model
    assert trainer.state_dict()[1]["rate_factor"] == 0.5


CARD = {
    "command": "python", "num_steps": 7, "train_s": 1,
    "config": {"batch_size": 8, "start": "closed_form", "start_crops": 9},
    "device": "cpu", "torch": "2",
    "precision": "fp32", "start_s": 2,
    "seed": 0, "calibration_images": 3,
}  # fmt: skip
