"""The generator's outputs: which position comes next, and which code.

Letters: N patch places, W width, V codes; ... any shape of elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.nn.blocks import SwiGLU
from tatok_pipe.nn.norm import RMSNorm


class PositionHead(nn.Module):
    """Logits over the position of the next patch, or END, which is N."""

    def __init__(self, width: int, *, num_patches: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, num_patches + 1, bias=False)

    def forward(self, hidden: Tensor, last_position: Tensor) -> Tensor:
        """(..., W) and (...) int64, -1 before the first patch, to (..., N + 1) float32: -inf up to `last_position`,
        so that positions increase whatever the weights are."""
        logits = self.out(hidden).float()
        past = torch.arange(logits.shape[-1], device=logits.device) <= last_position[..., None]
        return logits.masked_fill(past, float("-inf"))


class CodeHead(nn.Module):
    """Logits over the code at a position that is already chosen. An MLP joins the two, because the sum of hidden state
    and position alone could not make what the state says of codes depend on the position."""

    def __init__(self, width: int, *, num_patches: int, vocab: int) -> None:
        super().__init__()
        self.places = nn.Embedding(num_patches, width)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, vocab, bias=False)

    def forward(self, hidden: Tensor, position: Tensor) -> Tensor:
        """(..., W) and positions (...) int64 to (..., V)."""
        x = hidden + self.places(position)
        x = x + self.mlp(self.mlp_norm(x))
        return self.out(self.norm(x))


def nats_and_log_partition(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-ln softmax(logits)[target], and ln Σ exp(logits): (M, V) and (M,) to two of (M,) float32."""
    logits = logits.float()
    nats = F.cross_entropy(logits, targets, reduction="none")
    return nats, nats + logits.gather(1, targets[:, None])[:, 0]
