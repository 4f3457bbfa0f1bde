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

from tatok_pipe.tokenizer.linear import LinearCodec
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
        # In the order of `windows`, in which the patch that sees a code as its last neighbour comes first.
        self.flat = (jacobian.flip(0) @ self.basis).transpose(0, 1).flatten(1)  # (C, 9·R)
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


class ProjectedDecoder:
    """What the linear decoder of `linear` makes of codes where all patches are kept, in the directions `basis` (P, R)
    alone, at half the arithmetic of `LinearCodec.all_residuals`."""

    def __init__(self, linear: LinearCodec, basis: Tensor) -> None:
        self.basis = basis
        self.codewords = (linear.jacobian() @ basis).flatten(0, 1)  # (9·C, R)
        self.picture_basis = linear.picture_basis.detach()
        first = 9 * (linear.patch_dim + 1)
        self.of_picture = linear.neighbours[1, first : first + self.picture_basis.shape[1]] @ basis
        nothing = basis.new_zeros(1, linear.grid_side**2, linear.patch_dim)
        grey = basis.new_full((1, linear.grid_side**2, len(basis)), 0.5)
        self.rest = linear.all_residuals(nothing, grey) @ basis  # (1, N, R), of no codeword and no picture

    def errors(self, residual: Tensor, vectors: Tensor, picture: Tensor) -> Tensor:
        """What code vectors (B, N, C) miss of patches (B, N, P) less those of the globals' picture (B, N, P), as
        `pad_errors` has it."""
        side = round(vectors.shape[1] ** 0.5)
        around = windows(_pad(vectors, side), 0, 0, 1).flatten(3).flatten(1, 2)  # (B, N, 9·C)
        known = self.rest + ((picture - 0.5) @ self.picture_basis) @ self.of_picture
        return _pad((residual @ self.basis).sub_(known).sub_(around @ self.codewords), side)


def pad_errors(errors: Tensor, neighbourhood: Neighbourhood, side: int) -> Tensor:
    """Errors of patches (B, N, P) to (B, S + 2, S + 2, R), zero around."""
    return _pad(errors @ neighbourhood.basis, side)


def _pad(patches: Tensor, side: int) -> Tensor:
    """(B, N, …) to (B, S + 2, S + 2, …), zero around."""
    return F.pad(patches.unflatten(1, (side, side)), (0, 0, 1, 1, 1, 1))


def windows(padded: Tensor, row: int, column: int, step: int) -> Tensor:
    """Of padded errors (B, S + 2, S + 2, R): those of the patches around the places (row, column), (row, column +
    step), … in raster order, a view (B, rows, columns, 3, 3, R)."""
    return padded[:, row:, column:].unfold(1, 3, step).unfold(2, 3, step).permute(0, 1, 2, 4, 5, 3)


@torch.no_grad()
def search_codes(codes: Tensor, padded: Tensor, neighbourhood: Neighbourhood, *, num_passes: int) -> Tensor:
    """Codes (B, N) that are no worse than the given ones, whose linear decoding misses the image by `padded`
    (B, S + 2, S + 2, R), see `pad_errors`. It is written into."""
    side = padded.shape[1] - 2
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
            wanted = neighbourhood.mapped[before] + around.flatten(3) @ neighbourhood.ask
            after = nearest(wanted.flatten(0, -2), neighbourhood.mapped).view_as(before)
            change = neighbourhood.codebook[after] - neighbourhood.codebook[before]
            around -= (change @ neighbourhood.flat).view(around.shape)
            grid[:, row::_STEP, column::_STEP] = after
    return grid.view_as(codes)
