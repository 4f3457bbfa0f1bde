"""Distances between images and between sets of images; all of them from torchmetrics and scipy.

Letters: B images, H, W pixels, M and L numbers of feature vectors, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance

# Wang, Simoncelli and Bovik 2003: the weight of each scale of MS-SSIM, the finest first.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW_PIXELS = 11  # of SSIM, gaussian with a deviation of 1.5
MAX_PSNR_DB = 100.0  # of equal images
_NEIGHBOURS = 3  # of improved precision and recall, arXiv 1904.06991


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, at most MAX_PSNR_DB: (B, 3, H, W) in [0, 1], twice, to (B,)."""
    values = [
        peak_signal_noise_ratio(each.double(), wanted.double(), data_range=1.0)
        for each, wanted in zip(output, target, strict=True)
    ]
    return torch.stack(values).clamp_max(MAX_PSNR_DB)


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image, Wang et al. 2004, mean over channels and over the pixels whose window lies
    within the image: (B, 3, H, W) in [0, 1], twice, to (B,)."""
    found = structural_similarity_index_measure(
        output.double(), target.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    assert isinstance(found, tuple)
    border = _WINDOW_PIXELS // 2
    maps = found[1][..., border:-border, border:-border]
    return maps.mean(dim=(1, 2, 3))


def num_scales(image_size: int) -> int:
    """Of MS-SSIM: as many of the five as a window still fits into, 0 on images that are smaller than a window."""
    scales = 0
    # torchmetrics wants a window at 1/scales² of the size too, which says more at the fourth scale alone.
    while scales < len(_SCALE_WEIGHTS) and image_size // max(2**scales, scales**2) >= _WINDOW_PIXELS:
        scales += 1
    return scales


def ms_ssim(output: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM of each image, with the weights of the scales that there are (see `num_scales`) scaled to a
    sum of 1: (B, 3, H, W) in [0, 1], twice, to (B,). Values of fewer scales are not those of five."""
    weights = np.array(_SCALE_WEIGHTS[: num_scales(min(output.shape[-2:]))])
    values = multiscale_structural_similarity_index_measure(
        output.double(), target.double(), data_range=1.0, reduction="none",
        betas=tuple((weights / weights.sum()).tolist()),
    )  # fmt: skip
    return values.reshape(len(output))


class _Given(nn.Module):
    """torchmetrics asks for a network; the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Fréchet distance of gaussians fitted to features (M, D) and (L, D): |μ - μ'|² + tr(Σ + Σ' - 2(ΣΣ')^½).

    Raises ValueError for fewer than two vectors. With fewer vectors than features the covariances are singular, and
    the distance has a bias that falls with M and L: compare only distances of equal counts.
    """
    if min(len(ours), len(theirs)) < 2:
        raise ValueError(f"{len(ours)} and {len(theirs)} images: expected at least two of each")
    metric = FrechetInceptionDistance(feature=_Given(ours.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(np.asarray(theirs, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(ours, np.float64)), real=False)
    return float(metric.compute())


def precision_recall(ours: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of our features (M, D) within the manifold of the
    real ones (L, D), and of the real ones within ours. A manifold: balls up to the third neighbour."""

    def covered(points: np.ndarray, manifold: np.ndarray) -> float:
        neighbours = min(_NEIGHBOURS, len(manifold) - 1)
        radius = np.partition(cdist(manifold, manifold), neighbours, axis=1)[:, neighbours]
        return float((cdist(points, manifold) <= radius).any(axis=1).mean())

    ours, real = np.asarray(ours, np.float64), np.asarray(real, np.float64)
    return covered(ours, real), covered(real, ours)


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean divergence of p(y|x) from p(y), arXiv 1606.03498, over all images at once: logits (M, classes).
    With Inception's logits it is the Inception score; with another network's it is to be named after that one."""
    log_p = torch.from_numpy(np.asarray(logits, np.float64)).log_softmax(dim=1)
    log_mean = torch.logsumexp(log_p, dim=0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp())
