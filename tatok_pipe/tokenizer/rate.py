"""The rate of codes as a differentiable quantity, as in learned image compression (arXiv 1701.05517, 1802.01436).

Every dimension of an FSQ code has a mixture of discretised logistics, whose parameters come from the entropy model's
hidden state before the code is read. Its likelihood is differentiable in the latent, so that λ·R can ask the encoder
for codes that are cheap to predict.

Letters: B images, S codes, C dimensions of a code, M components, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.tokenizer.quantizer import FSQ

_NUM_COMPONENTS = 2
_MIN_LOG_SCALE = -4.0  # of a level
_SMALLEST = 1e-30  # of a likelihood; float32 ends near 1e-38


class RateHead(nn.Module):
    """Hidden states (B, S, W) and the code vectors (B, S, C) that they predict to nats of each code, (B, S)."""

    levels: Tensor

    def __init__(self, width: int, quantizer: FSQ) -> None:
        super().__init__()
        self.register_buffer("levels", quantizer.levels.float(), persistent=False)  # (C,)
        self.out = nn.Linear(width, quantizer.dim * _NUM_COMPONENTS * 3)
        nn.init.normal_(self.out.weight, std=0.02)
        # Components spread over the levels, each wide enough to reach the next.
        parameters = self.out.bias.data.zero_().view(quantizer.dim, _NUM_COMPONENTS, 3)
        parameters[:, :, 1] = torch.linspace(-0.5, 0.5, _NUM_COMPONENTS)

    def forward(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            weight, mean, log_scale = (
                self.out(hidden.float()).unflatten(-1, (len(self.levels), _NUM_COMPONENTS, 3)).unbind(-1)
            )  # (B, S, C, M) each
            half = (self.levels // 2)[:, None]  # vectors are digits from the middle one, over half the levels
            digit = vectors.float()[..., None] * half  # (B, S, C, 1), steps of 1
            scale = (-log_scale.clamp_min(_MIN_LOG_SCALE)).exp()
            above = (digit + 0.5 - mean * half) * scale
            below = (digit - 0.5 - mean * half) * scale
            # On the side where both are small, so that their difference keeps its digits far from the mean.
            side = torch.where(above + below > 0, -1.0, 1.0).detach()
            inside = ((side * above).sigmoid() - (side * below).sigmoid()).abs()
            # The outermost levels take all that lies beyond.
            is_first = digit.detach() < 0.5 - half
            is_last = digit.detach() > self.levels[:, None] - 1.5 - half
            mass = torch.where(is_first, above.sigmoid(), torch.where(is_last, (-below).sigmoid(), inside))
            likelihood = (F.softmax(weight, dim=-1) * mass).sum(-1)  # (B, S, C)
            return -likelihood.clamp_min(_SMALLEST).log().sum(-1)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor`; 0 cuts it off."""
    if factor == 0:
        return x.detach()
    return x.detach() + factor * (x - x.detach())
