"""Blocks over a grid: nothing at first, gradients as autograd's, and what sees what."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tatok_pipe.nn.grid import GridStack
from tatok_pipe.nn.norm import unit_rms


def stack(attend_every: int) -> GridStack:
    torch.manual_seed(0)
    return GridStack(width=8, depth=2, num_heads=2, grid_side=4, attend_every=attend_every)


def test_the_written_out_norm_is_that_of_torch() -> None:
    x = torch.randn(3, 5, 8, requires_grad=True)
    weight = torch.randn(3, 5, 8)
    (mine,) = torch.autograd.grad((unit_rms(x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((F.rms_norm(x, (8,), eps=1e-6) * weight).sum(), x)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(unit_rms(x), F.rms_norm(x, (8,), eps=1e-6), atol=1e-5)


def test_gradients_are_those_of_differences() -> None:
    blocks = stack(1)
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(2, 19, 8)
    direction = torch.randn_like(x)
    x.requires_grad_()
    weight = torch.randn(2, 19, 8)
    (gradient,) = torch.autograd.grad((blocks(x) * weight).sum(), x)
    with torch.no_grad():
        step = 1e-3
        ahead, behind = ((blocks(x + sign * step * direction) * weight).sum() for sign in (1, -1))
    measured = float(ahead - behind) / (2 * step)
    assert abs(float((gradient * direction).sum()) - measured) < 0.02 * abs(measured) + 0.05


def test_only_attention_carries_beyond_the_neighbours() -> None:
    x = torch.randn(1, 19, 8)
    changed = x.clone()
    changed[0, 3] += 1  # the upper left corner of the grid, after three tokens without a place
    for attend_every, reaches in ((4, False), (1, True)):
        blocks = stack(attend_every)
        with torch.no_grad():
            for parameter in blocks.parameters():
                parameter.normal_(std=0.3)
            moved = (blocks(changed) - blocks(x)).abs().amax(2)[0] > 1e-6
        assert bool(moved[18]) == bool(moved[0]) == reaches
        assert moved[3] and moved[4] and moved[7]
