"""What tokenizer training minimises, each term by itself so that each has its own curve.

Letters: B images, H = W pixels, K globals, N patches, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tatok_pipe.options import option
from tatok_pipe.tokenizer.prior import PriorOutput, surprisal_nats


@dataclass(frozen=True)
class LossConfig:
    l1: float = option(0.5, help="weight of the mean absolute error of pixels in [0, 1]")
    l2: float = option(2.0, help="weight of the mean squared error of pixels in [0, 1]")
    commitment: float = option(0.25, help="weight of the vq commitment loss (fsq has none)")

    def __post_init__(self) -> None:
        if min(self.l1, self.l2, self.commitment) < 0 or self.l1 + self.l2 == 0:
            raise ValueError(
                f"l1={self.l1}, l2={self.l2}, commitment={self.commitment}: expected weights of 0 or more, "
                "and one of l1 and l2 above 0"
            )


def pixel_losses(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute and mean squared error of images (B, 3, H, W), two scalars."""
    difference = output.float() - target
    return difference.abs().mean(), difference.square().mean()


def code_loss(
    prior: PriorOutput, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean surprisal of global codes (B, K) and patch codes (B, N): two scalars, nats a code.

    Images marked in `without_globals` (B,) do not count for the globals, which they do not show.
    """
    patch_nats = surprisal_nats(prior.patch_logits, patch_codes).mean()
    if not global_codes.shape[1]:
        return patch_nats.new_zeros(()), patch_nats
    shown = (~without_globals).float()[:, None]  # (B, 1)
    global_nats = surprisal_nats(prior.global_logits, global_codes) * shown
    return global_nats.sum() / (shown.sum() * global_codes.shape[1]).clamp_min(1), patch_nats
