"""Rotary position embedding (RoFormer, arXiv 2104.09864) over one axis or several.

Letters: L sequence length, A axes, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(coordinates: Tensor, *, head_dim: int, base: float = 100.0) -> Tensor:
    """Rotations for tokens at `coordinates` (L, A): cosines and sines, (L, D/2, 2) float32.

    The D/2 rotation planes are shared out evenly over the A axes, so that with A = 2 half of a head sees
    row offsets and half sees column offsets. `base` sets the longest wavelength, in units of coordinates.

    Raises ValueError where head_dim is not a multiple of 2·A.
    """
    length, axes = coordinates.shape
    if head_dim % (2 * axes):
        raise ValueError(f"head_dim={head_dim}: expected a multiple of {2 * axes} for {axes} rotary axes")
    planes = head_dim // (2 * axes)
    frequencies = base ** -(torch.arange(planes, dtype=torch.float64) / planes)  # (planes,)
    angles = coordinates.double()[:, :, None] * frequencies  # (L, A, planes)
    angles = angles.reshape(length, axes * planes)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys x (..., L, D), neighbouring channels as planes, by `table` (L, D/2, 2).

    The dtype of x is kept. float32 goes through one complex product, a single pass over memory each way;
    written out in real numbers, this took more time than the matrix products on CPU.
    """
    planes = x.unflatten(-1, (-1, 2))  # (..., L, D/2, 2)
    if x.dtype == torch.float32:
        return torch.view_as_real(torch.view_as_complex(planes) * torch.view_as_complex(table)).flatten(-2)
    cos, sin = table.to(x.dtype).unbind(-1)
    first, second = planes.unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


def grid_coordinates(side: int) -> Tensor:
    """(row, column) of every cell of a side × side grid in raster order: (side², 2) float32."""
    axis = torch.arange(side, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis)
