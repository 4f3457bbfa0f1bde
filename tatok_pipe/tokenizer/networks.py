"""What is learned on top of the linear codec: the encoder's and the decoder's networks, which begin at zero, and the
head that predicts what dropping a patch costs.

Letters: B images, N patches, P values of a patch, p patch size, K globals, W width, D and C dimensions of the code
vectors of globals and patches, F features of a patch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.nn.grid import GridStack

if TYPE_CHECKING:
    from tatok_pipe.tokenizer.options import TaTokConfig

_HEAD_WIDTH = 256
_NUM_RATE_WAVES = 8  # cosines of the keep rate that the decoder reads
_OUTPUT_SCALE = 0.02  # so that a step of the optimizer moves pixels about as far as it moves activations
_OVERLAP_SHARE = 4  # each patch of the decoder's output reaches p / 4 pixels into its neighbours


class DropCostHead(nn.Module):
    """Features (…, D) of a patch to the logarithm of what masking it costs, (…) float32, whatever autocast says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, _HEAD_WIDTH)
        self.out = nn.Linear(_HEAD_WIDTH, 1)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, math.log(1e-3))  # what a patch costs at the start of most trainings

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.out(F.gelu(self.hidden(features.float())))[..., 0]


class EncoderNetwork(nn.Module):
    """What attention over patches and globals adds to the linear latents of both, in units of their codes' size; zero
    at first."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        stack, width = config.encoder, config.encoder.width
        self.num_globals = config.num_globals
        self.patch_embed = nn.Linear(3 * config.patch_size**2, width)
        self.global_embed = nn.Parameter(
            torch.randn(config.num_globals, config.global_codebook.dim, width) * 0.5
        )
        self.positions = nn.Parameter(torch.randn(config.num_globals + config.num_patches, width) * 0.02)
        self.blocks = GridStack(
            width=width,
            depth=stack.depth,
            num_heads=stack.heads,
            grid_side=config.grid_side,
            attend_every=stack.attend_every,
        )
        self.to_global = nn.Parameter(torch.zeros(config.num_globals, width, config.global_codebook.dim))
        self.to_patch = nn.Linear(width, config.patch_codebook.dim)
        nn.init.zeros_(self.to_patch.weight)
        nn.init.zeros_(self.to_patch.bias)

    def forward(self, global_latents: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Global latents (B, K, D) of about unit size and patches (B, N, P) in [0, 1] to corrections (B, K, D) and
        (B, N, C), and the patches' features (B, N, W); float32."""
        x = torch.cat(
            [
                torch.einsum("bkd,kdw->bkw", global_latents, self.global_embed),
                self.patch_embed(patches * 2 - 1),
            ],
            dim=1,
        )
        x = self.blocks(x + self.positions)
        free, grid = x[:, : self.num_globals], x[:, self.num_globals :]
        corrections = torch.einsum("bkw,kwd->bkd", free, self.to_global.to(free.dtype)), self.to_patch(grid)
        return corrections[0].float(), corrections[1].float(), grid.float()


class DecoderNetwork(nn.Module):
    """What convolutions and attention over all tokens add to the linear decoder's picture; zero at first."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        stack, width, patch = config.decoder, config.decoder.width, config.patch_size
        self.image_size, self.patch_size, self.num_globals = config.image_size, patch, config.num_globals
        self.overlap = patch // _OVERLAP_SHARE
        self.patch_in = nn.Linear(config.patch_codebook.dim + 3 * patch**2, width)
        self.global_in = nn.Parameter(
            torch.randn(config.num_globals, config.global_codebook.dim, width) * 0.5
        )
        self.rate_in = nn.Linear(_NUM_RATE_WAVES, width)
        self.positions = nn.Parameter(torch.randn(config.num_globals + config.num_patches, width) * 0.02)
        self.dropped = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = GridStack(
            width=width,
            depth=stack.depth,
            num_heads=stack.heads,
            grid_side=config.grid_side,
            attend_every=stack.attend_every,
        )
        self.to_pixels = nn.Linear(width, 3 * (patch + 2 * self.overlap) ** 2)
        nn.init.zeros_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)

    def forward(self, global_vectors: Tensor, patch_vectors: Tensor, picture: Tensor, keep: Tensor) -> Tensor:
        """Code vectors (B, K, D) and (B, N, C) of about unit size, the globals' picture as patches (B, N, P), and the
        keep mask (B, N) to what is added to the image, (B, 3, H, W) float32."""
        kept = keep[:, :, None]
        x = self.patch_in(torch.cat([patch_vectors * kept, picture * 2 - 1], dim=2))
        x = x + torch.where(kept, 0.0, self.dropped)
        free = torch.einsum("bkd,kdw->bkw", global_vectors, self.global_in)
        waves = torch.arange(1, _NUM_RATE_WAVES + 1, device=x.device) * math.pi
        rate = self.rate_in((keep.float().mean(dim=1, keepdim=True) * waves).cos())  # (B, W)
        x = self.blocks(torch.cat([free, x], dim=1) + self.positions + rate[:, None])
        pixels = (
            self.to_pixels(x[:, self.num_globals :]).float() * _OUTPUT_SCALE
        )  # (B, N, 3·(p + 2·overlap)²)
        return F.fold(
            pixels.transpose(1, 2),
            self.image_size,
            self.patch_size + 2 * self.overlap,
            padding=self.overlap,
            stride=self.patch_size,
        )
