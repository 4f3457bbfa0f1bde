"""Quantizers: vectors to codes and back. FSQ (arXiv 2309.15505) and cosine VQ with EMA (arXiv 1711.00937, 2110.04627).

Letters: V codebook size, C code dimension. Both classes share one interface:
`quantize(latents (..., C)) -> Quantized`, `codes_to_vectors(codes (...)) -> (..., C)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.options import check_choices, option


@dataclass(frozen=True)
class QuantizerConfig:
    kind: str = option(
        "fsq", choices=("fsq", "vq"), help="fsq: fixed grid, cannot collapse; vq: learned cosine codebook"
    )
    levels: list[int] = option(
        [8, 8, 8, 8, 4],
        help="levels of each FSQ dimension; their product is the codebook size",
        unit="levels",
    )
    codebook_size: int = option(16384, help="codebook size of vq", unit="codes")
    code_dim: int = option(16, help="dimension of a vq code vector", unit="channels")
    ema_decay: float = option(
        0.99, help="decay of the vq codebook's moving averages", unit="per forward pass"
    )
    revive_below: float = option(
        0.02,
        help="a vq code used less than this often per forward pass is moved onto a recent latent",
        unit="uses",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(
                f"levels={list(self.levels)}: expected at least one dimension of 2 or more levels"
            )
        if self.codebook_size < 2 or self.code_dim < 1:
            raise ValueError(
                f"codebook_size={self.codebook_size}, code_dim={self.code_dim}: expected at least 2 and 1"
            )
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: expected a number between 0 and 1")

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels) if self.kind == "fsq" else self.codebook_size

    @property
    def dim(self) -> int:
        return len(self.levels) if self.kind == "fsq" else self.code_dim


@dataclass(frozen=True)
class Quantized:
    """`vectors` (..., C) pass gradients straight through; `codes` (...) int64; `regularizer` () is what the quantizer
    asks of the encoder, under the name that its class gives it."""

    vectors: Tensor
    codes: Tensor
    regularizer: Tensor


class FSQ(nn.Module):
    """Finite scalar quantization: every dimension is squashed to a few levels; the grid is the codebook."""

    regularizer = "evenness"

    levels: Tensor
    strides: Tensor

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.dim = config.dim
        self.num_levels = sum(config.levels)  # of all dimensions
        levels = torch.tensor(config.levels, dtype=torch.int64)
        strides = torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float())

    def _quantize(self, latents: Tensor) -> Quantized:
        levels = self.levels.float()
        # tanh keeps every value inside the grid; an even number of levels has no level at zero, hence the shift.
        half = (levels - 1) / 2
        reach = half * (1 + 1e-3)
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / reach)
        bounded = torch.tanh(latents + shift) * reach - offset
        rounded = bounded.round()
        digits = (rounded + self.levels // 2).long()  # 0 .. level - 1
        codes = (digits * self.strides).sum(-1)
        straight = bounded + (rounded - bounded).detach()
        vectors = straight / (self.levels // 2)
        return Quantized(vectors, codes, self._unevenness((straight + offset) / half))

    def _unevenness(self, values: Tensor) -> Tensor:
        """How far the use of the grid is from even, a scalar, by first and second moments: squared distances of the
        mean of values (..., C), which are levels from -1 to 1, from 0, and of their covariance from that of independent
        dimensions whose L levels are all used alike, (L + 1) / (3 (L - 1))."""
        flat = values.flatten(0, -2)
        if not len(flat):
            return values.new_zeros(())
        mean = flat.mean(dim=0)
        centred = flat - mean
        covariance = centred.t() @ centred / len(flat)
        levels = self.levels.float()
        even = torch.diag((levels + 1) / (3 * (levels - 1)))
        return mean.square().mean() + (covariance - even).square().sum() / self.dim

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """Codes (...) to the level of each dimension, (..., C) int64."""
        return codes[..., None] // self.strides % self.levels

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        half = self.levels // 2
        return (self.codes_to_digits(codes) - half).float() / half


class CosineVQ(nn.Module):
    """A learned codebook on the unit sphere, moved by moving averages; codes that fall out of use are revived.

    The averages are summed over all ranks where torch.distributed runs, so every rank holds one codebook.
    """

    regularizer = "commitment"

    codebook: Tensor  # (V, C), unit length
    ema_count: Tensor  # (V,) uses a step
    ema_sum: Tensor  # (V, C)
    num_updates: Tensor  # seeds the choice of latents for revival, so that a resumed run repeats it

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.dim = config.dim
        self.ema_decay = config.ema_decay
        self.revive_below = config.revive_below
        codebook = F.normalize(torch.randn(self.vocab_size, self.dim), dim=-1)
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_count", torch.ones(self.vocab_size))
        self.register_buffer("ema_sum", codebook.clone())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def quantize(self, latents: Tensor) -> Quantized:
        # In 16 bits many codes would be equally near.
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float())

    def _quantize(self, latents: Tensor) -> Quantized:
        latents = F.normalize(latents, dim=-1)
        flat = latents.reshape(-1, self.dim)
        if not len(flat):  # no globals
            return Quantized(
                latents, latents.new_zeros(latents.shape[:-1], dtype=torch.long), latents.new_zeros(())
            )
        codes = (flat @ self.codebook.t()).argmax(dim=-1)
        vectors = self.codebook[codes].view_as(latents)
        if self.training:
            self._update(flat.detach(), codes)
        commitment = (latents - vectors.detach()).square().sum(-1).mean()
        straight = latents + (vectors - latents).detach()
        return Quantized(straight, codes.view(latents.shape[:-1]), commitment)

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        count = torch.zeros_like(self.ema_count).index_add_(
            0, codes, torch.ones_like(codes, dtype=torch.float32)
        )
        total = torch.zeros_like(self.ema_sum).index_add_(0, codes, flat)
        generator = torch.Generator().manual_seed(int(self.num_updates))
        picks = flat[torch.randint(len(flat), (self.vocab_size,), generator=generator).to(flat.device)]
        self.num_updates += 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
            dist.broadcast(picks, src=0)
        self.ema_count.lerp_(count, 1 - self.ema_decay)
        self.ema_sum.lerp_(total, 1 - self.ema_decay)
        dead = self.ema_count < self.revive_below
        # A revived code starts with the weight of one use, so that it lives long enough to be chosen.
        self.ema_sum[dead] = picks[dead]
        self.ema_count[dead] = 1.0
        self.codebook.copy_(F.normalize(self.ema_sum, dim=-1))


def build_quantizer(config: QuantizerConfig) -> FSQ | CosineVQ:
    return FSQ(config) if config.kind == "fsq" else CosineVQ(config)
