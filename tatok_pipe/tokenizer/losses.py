"""What tokenizer training minimises, each term by itself so that each has its own curve.

Letters: B images, H = W pixels, K globals, N patches, V codebook size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.tokenizer.prior import PriorOutput, surprisal_nats

_SMALLEST_COST = 1e-6  # mean squared error, pixels in [0, 1]: 60 dB
_NEGLIGIBLE_ERROR = 1e-4  # 40 dB: an image that is better gains little by more


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
