"""The linear part of the tokenizer: a picture of the globals, what of the patches it leaves, and the patches out of the
codes around them. Its weights have closed forms (`closed_form`); the networks add to what it gives.

Globals are coefficients of a small picture of the whole image, the thumbnail; its enlargement is the picture R. A
patch's residual against R is projected onto C directions, which is what its codeword stands for. Each patch of the
output is R, its own codeword and a linear function of the codewords of its 3 × 3 neighbours, of which were kept, of R
and of the share of patches kept; one function for patches that were kept and one for those that were dropped.

Letters: B images, N patches on a grid of side S, p patch size, P = 3·p² values of a patch, K globals of D dimensions,
C dimensions of a patch's code vector, T side of the thumbnail, F features of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.tokenizer.options import MAX_THUMBNAIL_SIDE

_PICTURE_DIM = 24  # directions of a patch of R that its neighbours' weights see
_VECTOR_GAIN = (
    4.0  # brings code vectors to about the size of the keep flags beside them, for the ridge's sake
)
_MIDDLE = 4  # of 3 × 3


class LinearCodec(nn.Module):
    """Images are float (B, 3, H, W) in [0, 1]; patches (B, N, P). In float32 whatever autocast says."""

    enlarge: Tensor  # (H, T)

    def __init__(
        self, *, grid_side: int, patch_size: int, num_globals: int, global_dim: int, patch_dim: int
    ) -> None:
        super().__init__()
        self.grid_side = grid_side
        self.patch_size = patch_size
        self.num_globals = num_globals
        self.global_dim = global_dim
        self.patch_dim = patch_dim
        self.thumbnail_side = side = min(grid_side, MAX_THUMBNAIL_SIDE)
        values = 3 * patch_size**2
        picture_dim = min(_PICTURE_DIM, values)

        def directions(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns)))

        self.mean = nn.Parameter(torch.full((3 * side**2,), 0.5))
        self.global_basis = directions(3 * side**2, num_globals * global_dim)
        self.patch_basis = directions(values, patch_dim)
        self.picture_basis = directions(values, picture_dim)
        # Dropped and kept; the features are those of `features`.
        self.neighbours = nn.Parameter(torch.zeros(2, 9 * (patch_dim + 1) + picture_dim + 2, values))
        size = grid_side * patch_size
        enlarge = F.interpolate(torch.eye(side)[None, None], size=(size, side), mode="bicubic")[0, 0]
        self.register_buffer("enlarge", enlarge, persistent=False)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, P)."""
        batch, side, patch = len(images), self.grid_side, self.patch_size
        x = images.reshape(batch, 3, side, patch, side, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, P) to (B, 3, H, W)."""
        batch, side, patch = len(patches), self.grid_side, self.patch_size
        x = patches.reshape(batch, side, side, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, side * patch, side * patch)

    def thumbnails(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3·T²)."""
        return F.adaptive_avg_pool2d(images, self.thumbnail_side).flatten(1)

    def global_latents(self, images: Tensor) -> Tensor:
        """(B, K, D)."""
        latents = (self.thumbnails(images) - self.mean) @ self.global_basis
        return latents.view(len(images), self.num_globals, self.global_dim)

    def render(self, global_vectors: Tensor) -> Tensor:
        """Global vectors (B, K, D) to their picture R, (B, 3, H, W)."""
        side = self.thumbnail_side
        thumbnails = global_vectors.flatten(1) @ self.global_basis.t() + self.mean
        return self.enlarge @ thumbnails.view(-1, 3, side, side) @ self.enlarge.t()

    def features(self, vectors: Tensor, picture: Tensor, keep: Tensor) -> Tensor:
        """What the neighbours' weights multiply, (B, N, F), given code vectors (B, N, C), R as patches (B, N, P) and
        the keep mask (B, N)."""
        side = self.grid_side
        kept = keep[:, :, None].to(vectors.dtype)
        each = torch.cat([vectors * kept * _VECTOR_GAIN, kept], dim=2)  # (B, N, C + 1)
        around = F.unfold(each.transpose(1, 2).unflatten(2, (side, side)), 3, padding=1).transpose(1, 2)
        share = kept.mean(dim=1, keepdim=True).expand(-1, side**2, -1)
        return torch.cat([around, (picture - 0.5) @ self.picture_basis, share, torch.ones_like(share)], dim=2)

    def own(self, vectors: Tensor, keep: Tensor) -> Tensor:
        """What the codewords say of their own patches, (B, N, P)."""
        return keep[:, :, None].to(vectors.dtype) * (vectors @ self.patch_basis.t())

    def gain(self, projected: Tensor, vectors: Tensor) -> Tensor:
        """What the codewords (B, N, C) take off the mean squared errors of their own patches, (B, N), whose residuals
        have these products with `patch_basis`, (B, N, C): |r|² - |r - bv|² of P values."""
        gram = self.patch_basis.t() @ self.patch_basis
        return torch.linalg.vecdot(2 * projected - vectors @ gram, vectors) / len(self.patch_basis)

    def residuals(self, vectors: Tensor, picture: Tensor, keep: Tensor) -> Tensor:
        """Patches of the output less those of R, (B, N, P); for what `features` takes."""
        features = self.features(vectors, picture, keep)
        dropped, kept = (features @ weight for weight in self.neighbours)
        return self.own(vectors, keep) + torch.where(keep[:, :, None], kept, dropped)

    def all_residuals(self, vectors: Tensor, picture: Tensor) -> Tensor:
        """The same where all patches are kept."""
        keep = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        features = self.features(vectors, picture, keep)
        return torch.addmm(
            (vectors @ self.patch_basis.t()).flatten(0, 1), features.flatten(0, 1), self.neighbours[1]
        ).view_as(picture)

    def jacobian(self) -> Tensor:
        """How a code vector moves the 3 × 3 patches around it where all patches are kept: (9, C, P), the patch that
        sees it as its j-th neighbour at j."""
        channels = self.patch_dim + 1
        weights = self.neighbours[1, : 9 * channels].view(channels, 9, -1)[: self.patch_dim]
        moved = _VECTOR_GAIN * weights.transpose(0, 1)
        moved = moved.clone()
        moved[_MIDDLE] += self.patch_basis.t()
        return moved
