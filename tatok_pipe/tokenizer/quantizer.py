"""Quantizers: vectors to codes and back. FSQ (arXiv 2309.15505) and Euclidean VQ (arXiv 1711.00937).

Letters: V codebook size, C code dimension, K places. Both classes share one interface:
`quantize(latents (..., C)) -> Quantized`, `codes_to_vectors(codes (...)) -> (..., C)`, `scale()`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tatok_pipe.tokenizer.encoded import Quantized
from tatok_pipe.tokenizer.options import QuantizerConfig

_CHUNK_ROWS = {"cpu": 256, "cuda": 2048}  # of distances at once; on a CPU they stay in its cache
_BLOCK = 64  # of distances, in which a place is looked for
_CODEWORD_SHARE = 4.0  # codewords move as much faster than latents (arXiv 1711.00937: β = 0.25)
_SMALLEST_SQUARE = 1e-12


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

    def scale(self) -> Tensor:
        """What brings code vectors to a size of one, ()."""
        return self.levels.new_ones((), dtype=torch.float32)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """Codes (...) to the level of each dimension, (..., C) int64."""
        return codes[..., None] // self.strides % self.levels

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        half = self.levels // 2
        return (self.codes_to_digits(codes) - half).float() / half


class VQ(nn.Module):
    """Codewords that are learned: the nearest one stands for a latent (arXiv 1711.00937). Codewords and latents are
    drawn to each other by gradients, codes that fall out of use are moved onto latents.

    With `num_places` the latents (..., K, C) have a codebook of their own at each of the K places: a product quantizer
    (Jégou, Douze, Schmid 2011). Uses are counted over all ranks where torch.distributed runs.
    """

    regularizer = "commitment"

    uses: Tensor  # (K, V), moving average of uses a step
    num_updates: Tensor  # seeds the choice of latents for revival, so that a resumed run repeats it

    def __init__(self, config: QuantizerConfig, *, num_places: int | None = None):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.dim = config.dim
        self.ema_decay = config.ema_decay
        self.revive_below = config.revive_below
        self.has_places = num_places is not None
        shape = (1 if num_places is None else num_places, self.vocab_size)
        self.codebook = nn.Parameter(torch.randn(*shape, self.dim) * 0.1)
        self.register_buffer("uses", torch.ones(shape))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def quantize(self, latents: Tensor) -> Quantized:
        # In 16 bits many codes would be equally near.
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float())

    def _quantize(self, latents: Tensor) -> Quantized:
        by_place = latents.detach()
        by_place = (
            by_place.flatten(0, -3).transpose(0, 1) if self.has_places else by_place.reshape(1, -1, self.dim)
        )
        if not by_place.numel():  # no globals
            codes = latents.new_zeros(latents.shape[:-1], dtype=torch.long)
            return Quantized(latents, codes, latents.new_zeros(()))
        with torch.no_grad():
            rows = [nearest(*pair) for pair in zip(by_place, self.codebook, strict=True)]
            if self.training:
                self._update(by_place, torch.stack(rows))
        return self.at(latents, torch.stack(rows, dim=1).view(latents.shape[:-1]))

    def at(self, latents: Tensor, codes: Tensor) -> Quantized:
        """These codes (...) for latents (..., C), be they the nearest or not."""
        vectors = self.codes_to_vectors(codes)
        to_codes = (latents - vectors.detach()).square().sum(-1).mean()
        to_latents = (latents.detach() - vectors).square().sum(-1).mean()
        # Straight through to the latents, and to the codewords, which are what is decoded.
        through = vectors + (latents - latents.detach())
        return Quantized(through, codes, to_codes + _CODEWORD_SHARE * to_latents)

    def codes_to_vectors(self, codes: Tensor) -> Tensor:
        if not self.has_places:
            return self.codebook[0][codes]
        return self.codebook[torch.arange(len(self.codebook), device=codes.device), codes]

    def scale(self) -> Tensor:
        """What brings code vectors to a size of one: () for one codebook, (K, C) for one at each place."""
        mean = self.codebook.detach().square().mean(dim=(0, 1, 2) if not self.has_places else 1)
        return mean.clamp_min(_SMALLEST_SQUARE).rsqrt()

    @torch.no_grad()
    def _update(self, latents: Tensor, codes: Tensor) -> None:
        """Latents (K, M, C) and their codes (K, M)."""
        places, size = self.uses.shape
        flat = (codes + size * torch.arange(places, device=codes.device)[:, None]).flatten()
        count = torch.bincount(flat, minlength=places * size).view(places, size).float()
        generator = torch.Generator().manual_seed(int(self.num_updates))
        drawn = torch.randint(latents.shape[1], (size,), generator=generator).to(latents.device)
        picks = latents[:, drawn].contiguous()  # (K, V, C)
        self.num_updates += 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.broadcast(picks, src=0)
        self.uses.lerp_(count, 1 - self.ema_decay)
        dead = self.uses < self.revive_below
        self.codebook[dead] = picks[dead]
        # A revived code starts with the weight of one use, so that it lives long enough to be chosen.
        self.uses[dead] = 1.0


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest codeword of each vector, the first of those that are equally near: (M, C) and (V, C) to (M,)."""
    half = codebook.square().sum(dim=1) / 2
    transposed = codebook.t()
    parts = vectors.split(_CHUNK_ROWS.get(vectors.device.type, _CHUNK_ROWS["cuda"]))
    return torch.cat([_argmax(torch.addmm(half, part, transposed, beta=-1)) for part in parts])


def _argmax(values: Tensor) -> Tensor:
    """The first of the largest in each row, (M, V) to (M,).

    On a CPU torch finds maxima in a fifteenth of the time that it takes for their places, so the place is looked for in
    that block alone whose maximum is the largest: 0.2 instead of 0.85 ms for 480 × 2,048, one core.
    """
    rows, size = values.shape
    if values.device.type != "cpu" or size % _BLOCK:
        return values.argmax(dim=1)
    blocks = values.view(rows, -1, _BLOCK)
    block = blocks.amax(dim=2).argmax(dim=1)
    return _BLOCK * block + blocks[torch.arange(rows), block].argmax(dim=1)


def build_quantizer(config: QuantizerConfig, *, num_places: int | None = None) -> FSQ | VQ:
    return FSQ(config) if config.kind == "fsq" else VQ(config, num_places=num_places)
