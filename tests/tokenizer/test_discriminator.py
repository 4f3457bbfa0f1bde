from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.discriminator import (
    Discriminator,
    adaptive_weight,
    adversarial_factor,
    discriminator_loss,
    generator_loss,
)
from tatok_pipe.tokenizer.training_options import NORMS, DiscriminatorConfig


def small(norm: str = "group", depth: int = 2) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(width=16, depth=depth, norm=norm))


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Crops of three pictures in turn, (36, 3, 64, 64) in [0, 1]."""
    samples = held_out_crops(crops_per_source=12)
    pixels = [torch.from_numpy(decode_image(sample.image, PreprocessConfig(64))[0]) for sample in samples]
    images = torch.stack(pixels).permute(0, 3, 1, 2).float() / 255
    return images.unflatten(0, (3, 12)).transpose(0, 1).flatten(0, 1)


def soften(images: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("norm", NORMS)
def test_learns_to_tell_pictures_from_blurred_ones_that_it_never_saw(crops: Tensor, norm: str) -> None:
    discriminator = small(norm)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    seen, unseen = crops[:24], crops[24:]

    def lead() -> Tensor:  # of each unseen picture over its blurred self
        with torch.no_grad():
            return (discriminator(unseen) - discriminator(soften(unseen))).mean(dim=(1, 2))

    assert lead().abs().max() < 0.2
    for step in range(40):
        real = seen[step % 2 :: 2]
        loss = discriminator_loss(discriminator(real), discriminator(soften(real)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7
    assert (lead() > 0).all()  # little for a crop that is all out of focus and loses nothing by a blur
    assert lead().mean() > 1


@pytest.mark.parametrize("norm", NORMS)
def test_resumed_training_equals_uninterrupted_training(crops: Tensor, norm: str) -> None:
    def step(discriminator: Discriminator, images: Tensor) -> None:
        loss = discriminator_loss(discriminator(images), discriminator(soften(images)))
        for parameter, gradient in zip(
            discriminator.parameters(),
            torch.autograd.grad(loss, list(discriminator.parameters())),
            strict=True,
        ):
            parameter.data.sub_(gradient, alpha=0.1)

    whole = small(norm)
    step(whole, crops[:4])
    resumed = Discriminator(whole.config)
    resumed.load_state_dict(whole.state_dict())
    for discriminator in (whole, resumed):
        step(discriminator, crops[4:8])
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_logits_of_an_image_do_not_depend_on_its_batch(crops: Tensor, norm: str) -> None:
    discriminator = small(norm)
    if norm == "spectral":
        discriminator.eval()  # its vectors move with every pass
    together = discriminator(crops[:3])
    alone = torch.cat([discriminator(crops[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("depth", "size", "side"), [(1, 32, 14), (2, 64, 14), (3, 64, 6), (3, 256, 30), (3, 24, 1)]
)
def test_logits_come_in_the_documented_number(depth: int, size: int, side: int) -> None:
    logits = small(depth=depth)(torch.zeros(2, 3, size, size, dtype=torch.float32))
    assert logits.shape == (2, side, side)
    assert side == size // 2**depth - 2


def test_an_image_too_small_is_refused_by_its_size() -> None:
    discriminator = small(depth=3)
    with pytest.raises(ValueError, match="23×24 pixels: a discriminator of depth 3 needs 24 or more"):
        discriminator(torch.zeros(1, 3, 23, 24))


@pytest.mark.parametrize(("depth", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_documented(depth: int, field: int) -> None:
    discriminator = small("none", depth)
    assert discriminator.config.receptive_field == field
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[1] // 2
    (gradient,) = torch.autograd.grad(logits[0, middle, middle], images)
    seen = gradient[0].abs().sum(dim=0) > 0
    assert int(seen.any(dim=0).sum()) == int(seen.any(dim=1).sum()) == field


def test_hinge_losses_on_worked_numbers() -> None:
    real = torch.tensor([2.0, 0.5, -1.0])  # costs 0, 0.5, 2
    fake = torch.tensor([-3.0, 0.0, 0.5, -0.5])  # costs 0, 1, 1.5, 0.5
    assert discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 3.0 / 4) / 2)
    assert generator_loss(fake).item() == pytest.approx(0.75)
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)) == 1
    assert discriminator_loss(torch.full((3,), 1.5), torch.full((3,), -1.5)) == 0


def test_adaptive_weight_of_a_linear_decoder_worked_by_hand() -> None:
    layer = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    inputs = torch.tensor([3.0, 4.0])
    output = layer @ inputs  # 11
    reconstruction = (output - 10).square().sum()  # gradient 2 · 1 · (3, 4), of length 10
    adversarial = generator_loss(0.5 * output)  # gradient -0.5 · (3, 4), of length 2.5
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx(10 / 2.5)
    assert weight.dtype == torch.float32 and not weight.requires_grad
    assert layer.grad is None
    (reconstruction + weight * adversarial).backward()  # the graphs are still there
    assert layer.grad is not None
    assert torch.allclose(layer.grad, torch.tensor([[6.0, 8.0]]) - 4 * torch.tensor([[1.5, 2.0]]), atol=1e-4)


def test_adaptive_weight_is_bounded() -> None:
    layer = nn.Parameter(torch.ones(2))
    flat = (0 * layer).sum()
    assert adaptive_weight(layer.sum(), flat, layer) == 1e4
    assert adaptive_weight(flat, layer.sum(), layer) == 0


def test_adaptive_weight_of_half_precision_is_float32() -> None:
    layer = nn.Parameter(torch.full((4096,), 1.0, dtype=torch.float16))
    # Gradients of 1e4 and of 100 each: the norm of the former, 6.4e5, is beyond float16.
    weight = adaptive_weight((layer * 1e4).float().sum(), (layer * 100).float().sum(), layer)
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "start", "ramp", "factor"),
    [
        (0, 0, 0, 1.0),
        (9, 10, 0, 0.0),
        (10, 10, 0, 1.0),
        (9, 10, 4, 0.0),
        (10, 10, 4, 0.25),
        (12, 10, 4, 0.75),
        (13, 10, 4, 1.0),
        (1000, 10, 4, 1.0),
    ],
)
def test_adversarial_factor(step: int, start: int, ramp: int, factor: float) -> None:
    assert adversarial_factor(step, start, ramp) == factor


def test_adversarial_factor_refuses_negative_numbers() -> None:
    with pytest.raises(ValueError, match="ramp_steps=-1: expected 0 or more"):
        adversarial_factor(0, 0, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width=12: expected a multiple of 8"),
        ({"width": 0}, "width=0: expected at least 8"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"norm": "batch"}, "norm=batch: expected one of group, spectral, none"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**options)  # type: ignore[arg-type]
