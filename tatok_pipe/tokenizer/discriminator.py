"""The adversarial part of tokenizer training: a PatchGAN discriminator (pix2pix, arXiv 1611.07004) and what VQGAN
(arXiv 2012.09841) trains with it: hinge losses, an adaptive weight, a delayed start.

Letters: B images, H×W pixels, h×w logits of an image.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tatok_pipe.tokenizer.training_options import DiscriminatorConfig

_GROUP_CHANNELS = 16
_MOST_WIDENING = 8  # the widest layer, in widths of the first
_SMALLEST_NORM = 1e-6  # delta of VQGAN's eq. 7
_HIGHEST_WEIGHT = 1e4


class Discriminator(nn.Module):
    """Images (B, 3, H, W) in [0, 1], not necessarily clamped, to logits (B, h, w) float32: high where a patch looks
    real. h = H // 2^depth - 2. Raises ValueError for images smaller than `smallest_image`.

    As in pix2pix all convolutions are 4×4 with a padding of 1: `depth` of stride 2, one of stride 1, one to the
    logits; each but the last doubles the channels, up to 8 times the first; LeakyReLU of 0.2. Weights start as
    PyTorch starts them: from pix2pix's deviation of 0.02, group norm learned later in short trials.

    There is no batch norm. Its statistics would come from the images that happen to share a worker and a micro-batch,
    so the same step would differ with their number, and its running averages would be state beside the weights.
    Group norm looks at one image at a time. Its mean and deviation are over the whole image though, so a logit also
    depends, weakly, on what lies outside its patch; with `spectral` and `none` it does not. `spectral` (arXiv
    1802.05957) keeps two vectors a layer in the state_dict and moves them with every forward pass in training mode.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = [config.width * min(2**place, _MOST_WIDENING) for place in range(config.depth + 1)]
        layers: list[nn.Module] = [_convolution(3, widths[0], stride=2, norm=config.norm), nn.LeakyReLU(0.2)]
        for place, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if place < config.depth else 1
            layers.append(_convolution(inputs, outputs, stride=stride, norm=config.norm))
            if config.norm == "group":
                layers.append(nn.GroupNorm(outputs // _GROUP_CHANNELS, outputs))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(_convolution(widths[-1], 1, stride=1, norm=config.norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.config.smallest_image:
            raise ValueError(
                f"images of {images.shape[-2]}×{images.shape[-1]} pixels: a discriminator of depth "
                f"{self.config.depth} needs {self.config.smallest_image} or more; lower the depth"
            )
        return self.layers(images * 2 - 1).float().squeeze(1)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator, a scalar: ½ (mean max(0, 1 - real) + mean max(0, 1 + fake)), over all logits.

    It is 1 for a discriminator that says 0 of everything. `fake_logits` must come from detached images.
    """
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Adversarial loss of what made the images, a scalar: minus the mean of their logits. It has no lower bound."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """VQGAN's eq. 7: the factor that gives the adversarial loss the same pull on the decoder's last layer as the
    reconstruction loss, |∇ reconstruction| / (|∇ adversarial| + 1e-6), at most 1e4. A scalar, float32, detached.

    Both losses are scalars whose graphs reach `last_layer`, a parameter; the graphs are kept for the backward pass
    of their sum, and no .grad is touched. The reconstruction loss comes with its weights, as it enters the total,
    the adversarial loss without. The gradients are those of this process: average the result over data parallel
    workers, or each would weigh its images differently. Raises RuntimeError where a loss does not depend on
    `last_layer`.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    weight = reconstruction.float().norm() / (adversarial.float().norm() + _SMALLEST_NORM)
    return weight.clamp(0, _HIGHEST_WEIGHT).detach()


def adversarial_factor(step: int, start_step: int, ramp_steps: int = 0) -> float:
    """Factor of the adversarial loss in step `step`, counted from 0: 0 before `start_step`, then a linear rise over
    `ramp_steps` steps to 1. The first step of the rise has 1/ramp_steps; without a rise it has 1.

    Raises ValueError for negative numbers.
    """
    if min(step, start_step, ramp_steps) < 0:
        raise ValueError(f"step={step}, start_step={start_step}, ramp_steps={ramp_steps}: expected 0 or more")
    if step < start_step:
        return 0.0
    return min(1.0, (step - start_step + 1) / max(1, ramp_steps))


def _convolution(inputs: int, outputs: int, *, stride: int, norm: str) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=1)
    return spectral_norm(convolution) if norm == "spectral" else convolution
