"""What tokenizer training minimises, each term by itself so that each has its own curve.

Letters: B images, H = W pixels, K globals, N patches, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.options import check_choices, option, section
from tatok_pipe.tokenizer.discriminator import DiscriminatorConfig
from tatok_pipe.tokenizer.perceptual import FEATURES
from tatok_pipe.tokenizer.prior import PriorOutput, surprisal_nats

_SMALLEST_COST = 1e-6  # mean squared error, pixels in [0, 1]: 60 dB
_NEGLIGIBLE_ERROR = 1e-4  # 40 dB: an image that is better gains little by more


@dataclass(frozen=True)
class LossConfig:
    l1: float = option(0.0, help="weight of the mean absolute error of pixels in [0, 1]")
    l2: float = option(0.0, help="weight of the mean squared error of pixels in [0, 1]")
    log_l2: float = option(
        1.0,
        help="weight of the logarithm of each image's mean squared error, so that images count alike whatever share of "
        "their patches is kept",
    )
    perceptual: float = option(0.1, help="weight of the distance of features")
    perceptual_features: str = option(
        "efficientnet_lite0",
        choices=FEATURES,
        help="whose features: EfficientNet-Lite0's, or the network of the lpips package",
    )
    adversarial: float = option(
        0.0, help="weight of the PatchGAN discriminator's verdict, on top of the adaptive one (LlamaGen: 0.5)"
    )
    adversarial_start_step: int = option(
        20_000, help="from when on the discriminator is trained and heard", unit="steps"
    )
    discriminator: DiscriminatorConfig = section(
        DiscriminatorConfig, help="the discriminator, where adversarial is above 0"
    )
    commitment: float = option(0.25, help="weight of the commitment of vq latents to their codes")
    evenness: float = option(
        0.02,
        help="weight of how unevenly fsq latents use their grid, which keeps codes from falling out of use",
    )
    rate: float = option(
        0.0,
        help="weight λ of the nats of a code, mean of the globals plus mean of the patches, in the joint stage: the "
        "encoder is asked for codes that are cheap to predict, and to predict others from (fsq only)",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in (
            "l1",
            "l2",
            "log_l2",
            "perceptual",
            "adversarial",
            "commitment",
            "evenness",
            "rate",
            "adversarial_start_step",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.l1 + self.l2 + self.log_l2 == 0:
            raise ValueError(
                f"l1={self.l1}, l2={self.l2}, log_l2={self.log_l2}: expected one of them above 0"
            )


def pixel_losses(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of images (B, 3, H, W): mean absolute error, mean squared error, and the mean over images of the logarithm of
    theirs; scalars."""
    difference = output.float() - target
    squares = difference.square().flatten(1).mean(dim=1)
    return difference.abs().mean(), squares.mean(), (squares + _NEGLIGIBLE_ERROR).log().mean()


def code_loss(
    prior: PriorOutput, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean surprisal of global codes (B, K) and patch codes (B, N): two scalars, nats a code.

    Images marked in `without_globals` (B,) do not count for the globals, which they do not show.
    """
    global_nats = surprisal_nats(prior.global_logits, global_codes)
    patch_nats = surprisal_nats(prior.patch_logits, patch_codes)
    return shown_mean(global_nats, ~without_globals), patch_nats.mean()


def shown_mean(nats: Tensor, shown: Tensor) -> Tensor:
    """Mean of nats (B, K) over the images marked in `shown` (B,); 0 where there is none."""
    weight = shown.float()[:, None].expand_as(nats)
    return (nats * weight).sum() / weight.sum().clamp_min(1)


def drop_cost_loss(log_cost: Tensor, cost: Tensor) -> Tensor:
    """Huber loss of predicted logarithms (M,) against costs (M,), mean squared errors that may be 0 or less. A scalar,
    0 where there is none."""
    target = cost.clamp_min(_SMALLEST_COST).log()
    return F.smooth_l1_loss(log_cost, target, reduction="sum") / max(1, len(target))
