"""Analysis by synthesis of patch codes: each code in turn is the one whose picture is nearest to the image, given the
codes around it, under the linear decoder with all patches kept.

Codes three places apart move no patch in common, so that a pass has nine steps, in each of which a ninth of the codes
is chosen at once. The errors are kept up to date on the way. The best code of a place is exact away from the border; at
the border the patches outside count as if they were there.

Letters: B images, N patches on a grid of side S, P values of a patch, C dimensions, V codewords.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.tokenizer.quantizer import nearest

_STEP = 3  # places from one code to the next that is chosen at the same time
_DIRECTIONS_PER_DIM = 1.5
_RIDGE = 1e-5  # of the mean diagonal, so that directions without weight have an inverse


class Neighbourhood:
    """How code vectors move the patches around them: `jacobian` (9, C, P) of the linear decoder, and codewords (V, C).

    Errors of patches are looked at in the R directions in which code vectors move them most: of 192 values with 64
    dimensions 96 directions hold 99.9 % of the motion, at half the arithmetic.
    """

    def __init__(self, jacobian: Tensor, codebook: Tensor) -> None:
        dim, values = jacobian.shape[1:]
        moved = jacobian.flatten(0, 1)
        directions = torch.linalg.eigh(moved.t() @ moved).eigenvectors
        self.basis = directions[:, -min(values, round(_DIRECTIONS_PER_DIM * dim)) :].contiguous()  # (P, R)
        self.flat = (jacobian @ self.basis).transpose(0, 1).flatten(1)  # (C, 9·R)
        gram = self.flat @ self.flat.t()
        eye = torch.eye(dim, dtype=gram.dtype, device=gram.device)
        self.gram = gram + _RIDGE * gram.diagonal().mean() * eye
        lower = torch.linalg.cholesky(self.gram)
        self.codebook = codebook
        self.mapped = codebook @ lower  # (V, C), where the distance of codewords is that of their pictures
        self.unmap = torch.linalg.inv(lower).t().contiguous()
        # What the neighbours' errors ask of a code vector, where the gram matrix is the identity.
        self.ask = (self.flat.t() @ self.unmap).contiguous()  # (9·R, C)

    def pull(self, windows: Tensor) -> Tensor:
        """Errors of the patches around (..., 9·R) to what they ask of the code vector in the middle, (..., C): the
        gradient, not yet divided by `gram`."""
        return windows @ self.flat.t()


def pad_errors(errors: Tensor, neighbourhood: Neighbourhood, side: int) -> Tensor:
    """Errors of patches (B, N, P) to (B, S + 2, S + 2, R), zero around."""
    return F.pad((errors @ neighbourhood.basis).unflatten(1, (side, side)), (0, 0, 1, 1, 1, 1)).contiguous()


def windows(padded: Tensor, row: int, column: int, step: int) -> list[Tensor]:
    """Of padded errors (B, S + 2, S + 2, R): for the places (row, column), (row, column + step), … the patches that
    see them as their j-th neighbour, nine views (B, rows, columns, R)."""
    side = padded.shape[1] - 2
    found = []
    for index in range(9):
        top, left = row + 2 - index // 3, column + 2 - index % 3
        found.append(padded[:, top : top + side - row : step, left : left + side - column : step])
    return found


@torch.no_grad()
def search_codes(
    codes: Tensor, errors: Tensor, neighbourhood: Neighbourhood, *, side: int, num_passes: int
) -> Tensor:
    """Codes (B, N) that are no worse than the given ones, whose linear decoding misses the image by `errors`
    (B, N, P)."""
    padded = pad_errors(errors, neighbourhood, side)
    grid = codes.clone().view(-1, side, side)
    for _ in range(num_passes):
        for row, column in product(range(min(_STEP, side)), repeat=2):
            # What was written outside is no error of any patch.
            padded[:, 0] = 0
            padded[:, -1] = 0
            padded[:, :, 0] = 0
            padded[:, :, -1] = 0
            around = windows(padded, row, column, _STEP)
            before = grid[:, row::_STEP, column::_STEP]
            wanted = neighbourhood.mapped[before] + torch.cat(around, dim=3) @ neighbourhood.ask
            after = nearest(wanted.flatten(0, -2), neighbourhood.mapped).view_as(before)
            change = neighbourhood.codebook[after] - neighbourhood.codebook[before]
            moved = (change @ neighbourhood.flat).chunk(9, dim=3)
            for window, part in zip(around, moved, strict=True):
                window -= part
            grid[:, row::_STEP, column::_STEP] = after
    return grid.view_as(codes)
