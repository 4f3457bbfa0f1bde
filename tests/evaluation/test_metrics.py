from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tatok_pipe.evaluation.metrics import (
    MAX_PSNR_DB,
    frechet_distance,
    inception_score,
    ms_ssim,
    num_scales,
    precision_recall,
    psnr,
    ssim,
)
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Real crops and what is left of them after blur and noise, (6, 3, 128, 128) each."""
    crops = held_out_crops(crops_per_source=2)
    pixels = [decode_image(crop.image, PreprocessConfig(image_size=128))[0] for crop in crops]
    target = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    noise = 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(target, 3, stride=1, padding=1)
    return (blurred + noise).clamp(0, 1), target


def test_psnr_and_ssim_are_those_of_scikit_image(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    output, target = pairs
    for number, (ours, similarity) in enumerate(zip(psnr(output, target), ssim(output, target), strict=True)):
        a, b = (x[number].permute(1, 2, 0).double().numpy() for x in pairs)
        assert float(ours) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-3)
        expected: Any = structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(similarity) == pytest.approx(float(expected), abs=1e-3)
    assert psnr(target, target).tolist() == [MAX_PSNR_DB] * 6
    assert ssim(target, target).tolist() == pytest.approx([1.0] * 6)


def test_ms_ssim_takes_the_scales_that_there_are(pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert [num_scales(side) for side in (8, 11, 22, 32, 44, 96, 99, 128, 175, 176, 512)] == [
        0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5,
    ]  # fmt: skip
    output, target = pairs
    for side in (32, 96, 176):
        sized = [torch.nn.functional.interpolate(x, (side, side), mode="bilinear") for x in pairs]
        values = ms_ssim(*sized)
        assert values.shape == (6,) and bool(((values > 0.2) & (values < 1)).all()), side
    assert ms_ssim(target, target).tolist() == pytest.approx([1.0] * 6)
    # Every scale below the first leaves noise out, so that it counts for less than in plain SSIM.
    assert bool((ms_ssim(output, target) > ssim(output, target)).all())


@pytest.mark.parametrize("num_ours", [400, 30])
def test_frechet_distance_is_that_of_scipy(num_ours: int) -> None:
    random = np.random.default_rng(0)
    mixed = random.normal(size=(48, 48)) / 7
    ours = (random.normal(size=(num_ours, 48)) @ mixed + 0.3).astype(np.float32)
    theirs = random.normal(size=(500, 48)).astype(np.float32)
    found = frechet_distance(ours, theirs)
    a, b = (np.cov(x.astype(np.float64), rowvar=False) for x in (ours, theirs))
    root = linalg.sqrtm(a @ b)
    shift = ours.astype(np.float64).mean(0) - theirs.astype(np.float64).mean(0)
    expected = shift @ shift + np.trace(a + b - 2 * np.real(root))
    # Where the covariance is singular the root is not known better than this.
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert frechet_distance(theirs, theirs) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="1 and 500 images: expected at least two"):
        frechet_distance(ours[:1], theirs)


def test_precision_and_recall_of_sets_that_overlap_by_half() -> None:
    random = np.random.default_rng(1)
    left, right = random.normal(size=(200, 4)), random.normal(size=(200, 4)) + 40
    ours = np.concatenate([left[:100], right[:100] + 400])  # half of it is nowhere near
    precision, recall = precision_recall(ours, np.concatenate([left[100:], right[100:]]))
    assert 0.4 < precision <= 0.5 and 0.4 < recall <= 0.5
    assert precision_recall(left, left) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)


def test_inception_score_counts_what_is_told_apart() -> None:
    certain = 50 * np.eye(4).repeat(5, axis=0)
    assert inception_score(certain) == pytest.approx(4)  # four classes, each image sure of its own
    assert inception_score(certain[:5]) == pytest.approx(1)  # one class
    assert inception_score(np.zeros((8, 4))) == pytest.approx(1)  # nothing is told apart
