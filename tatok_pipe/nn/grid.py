"""Blocks over tokens of which all but the first ones lie on a square grid: a convolution over the grid, an MLP, and
in some of them attention over all tokens.

Each branch ends in weights of zero, so that a stack begins as the identity and what is put on top of a good start
cannot make it worse. Activations are squares of ReLU (arXiv 2109.08668); norms have no weights.

Letters: B batch, K tokens without a place, S side of the grid, L = K + S² sequence length, W width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.nn.blocks import attend
from tatok_pipe.nn.norm import unit_rms

_MLP_RATIO = 4
_SHARPNESS = 1.5  # of attention at first: queries and keys have length 1, so their products are small
_CENTRE = 0.1  # of a convolution at first


class _SquaredReLU(torch.autograd.Function):
    """relu(x)², whose gradient is 2 · relu(x): half of the passes over memory that two functions take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


def _squared_relu(x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return _SquaredReLU.apply(x)  # type: ignore[return-value]
    return F.relu(x).square_()


class GridBlock(nn.Module):
    """x + attention(norm(x)) where `attends`, then x + convolution(norm(x)) on the grid, then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, *, grid_side: int, attends: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid_side = grid_side
        self.qkv = nn.Linear(width, 3 * width, bias=False) if attends else None
        self.out = nn.Linear(width, width, bias=False) if attends else None
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up = nn.Linear(width, _MLP_RATIO * width, bias=False)
        self.down = nn.Linear(_MLP_RATIO * width, width, bias=False)
        for branch in (self.out, self.convolution, self.down):
            if branch is not None:
                nn.init.zeros_(branch.weight)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.convolution.weight[:, :, 1, 1] = _CENTRE

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) to (B, L, W)."""
        if self.qkv is not None and self.out is not None:
            x = x + self.out(self._attend(self.qkv(unit_rms(x))))
        side = self.grid_side
        num_free = x.shape[1] - side**2
        grid = unit_rms(x[:, num_free:]).transpose(1, 2).unflatten(2, (side, side))  # (B, W, S, S)
        convolved = self.convolution(grid).flatten(2).transpose(1, 2)
        x = torch.cat([x[:, :num_free], x[:, num_free:] + convolved], dim=1)
        return x + self.down(_squared_relu(self.up(unit_rms(x))))

    def _attend(self, qkv: Tensor) -> Tensor:
        parts = qkv.unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)  # (B, H, 3, L, W/H)
        query, key, value = parts.unbind(2)
        query = unit_rms(query) * _SHARPNESS
        return attend(query, unit_rms(key), value, causal=False).transpose(1, 2).flatten(2)


class GridStack(nn.Module):
    """`depth` blocks and a final norm over (B, L, W). Of every `attend_every` blocks the middle one attends."""

    def __init__(self, *, width: int, depth: int, num_heads: int, grid_side: int, attend_every: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            GridBlock(
                width, num_heads, grid_side=grid_side, attends=index % attend_every == attend_every // 2
            )
            for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return unit_rms(x)
