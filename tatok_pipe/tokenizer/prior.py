"""The entropy model: a causal transformer over [globals, patches in raster order] that predicts the next code.

One teacher-forced pass gives, for every patch i, the conditional entropy h_i = H(z_i | G, z_<i) in nats.
Trained with the globals dropped from a share of the images it also gives H(z_i | z_<i).

Letters: B images, K globals, N patches, S = K + N, V_g and V_p codebook sizes, W width, C code dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.nn.blocks import Transformer
from tatok_pipe.nn.rotary import grid_coordinates, rotary_table
from tatok_pipe.tokenizer.quantizer import FSQ, VQ

# Logits in float32 that entropies are taken of at once. On a CPU they stay in its cache: 36 instead of 100 ms for 16
# images of 256 patches and 2,048 codes, the product that makes them included, one core. On a GPU all of them at once
# would be the most that a batch has in memory: 2 GiB for 128 images and 16,384 codes.
_CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
_MIN_CHUNK_ROWS = 256  # so that reading the weights does not cost more than the product


@dataclass(frozen=True)
class PriorOutput:
    """The teacher-forced pass: `global_logits` (B, K, V_g), `patch_logits` (B, N, V_p), and `hidden` (B, S, W), the
    state from which each of the codes is predicted."""

    global_logits: Tensor
    patch_logits: Tensor
    hidden: Tensor


class CodeHead(nn.Module):
    """Logits over a codebook. On an FSQ grid each code's weights are a free row plus one shared row for each
    of its levels, so that rare codes start from what their neighbours on the grid have learned."""

    level_index: Tensor  # (V, C) rows of `level_rows`

    def __init__(self, width: int, quantizer: FSQ | VQ):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(quantizer.vocab_size, width))
        self.bias = nn.Parameter(torch.zeros(quantizer.vocab_size))
        if isinstance(quantizer, FSQ):
            levels = quantizer.levels
            digits = quantizer.codes_to_digits(torch.arange(quantizer.vocab_size))  # (V, C)
            first = levels.cumsum(0) - levels
            self.register_buffer("level_index", digits + first, persistent=False)
            self.level_rows = nn.Parameter(torch.randn(quantizer.num_levels, width) * 0.02)
        else:
            nn.init.normal_(self.rows, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight().to(x.dtype), self.bias.to(x.dtype))

    @torch.no_grad()
    def entropy_nats(self, x: Tensor) -> Tensor:
        """Entropy of the distribution of the next code, from states (..., W) to (...) float32 in nats; as
        `entropy_nats` of the logits, which are never all in memory."""
        weight, bias = self._weight().to(x.dtype), self.bias.to(x.dtype)
        chunk_bytes = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES["cuda"])
        num_rows = max(_MIN_CHUNK_ROWS, chunk_bytes // (4 * len(bias)))
        chunks = x.flatten(0, -2).split(num_rows)
        return torch.cat([entropy_nats(F.linear(chunk, weight, bias)) for chunk in chunks]).view(x.shape[:-1])

    def _weight(self) -> Tensor:
        """(V, W)."""
        if not hasattr(self, "level_rows"):
            return self.rows
        return self.rows + self.level_rows[self.level_index].sum(dim=1)


class Prior(nn.Module):
    rotary: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        num_globals: int,
        grid_side: int,
        global_quantizer: FSQ | VQ,
        patch_quantizer: FSQ | VQ,
    ):
        super().__init__()
        self.num_globals = num_globals
        # A global's place decides what its dimensions mean, so each has weights of its own.
        self.global_in = nn.Parameter(torch.randn(num_globals, global_quantizer.dim, width) * 0.5)
        self.patch_in = nn.Linear(patch_quantizer.dim, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.no_global = nn.Parameter(torch.randn(num_globals, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(num_globals + grid_side**2, width) * 0.02)
        self.transformer = Transformer(width=width, depth=depth, num_heads=num_heads, causal=True)
        self.global_head = CodeHead(width, global_quantizer)
        self.patch_head = CodeHead(width, patch_quantizer)
        centre = torch.full((num_globals, 2), (grid_side - 1) / 2)
        coordinates = torch.cat([centre, grid_coordinates(grid_side)])
        table = rotary_table(coordinates, head_dim=width // num_heads)
        self.register_buffer("rotary", table, persistent=False)

    def forward(
        self, global_vectors: Tensor, patch_vectors: Tensor, *, without_globals: Tensor | None = None
    ) -> PriorOutput:
        """Predict every code from those before it.

        `global_vectors` (B, K, C_g) and `patch_vectors` (B, N, C_p) are the code vectors, scaled to about unit
        size. `without_globals`
        (B,) bool hides all globals of the marked images; their `global_logits` mean nothing then.
        """
        x = self._states(global_vectors, patch_vectors, without_globals)
        return PriorOutput(
            self.global_head(x[:, : self.num_globals]), self.patch_head(x[:, self.num_globals :]), x
        )

    def patch_entropy(
        self, global_vectors: Tensor, patch_vectors: Tensor, *, without_globals: Tensor | None = None
    ) -> Tensor:
        """Entropies (B, N) float32 of the patch codes in nats, each from those before it; for the same as `forward`,
        in less time and memory."""
        x = self._states(global_vectors, patch_vectors, without_globals)
        return self.patch_head.entropy_nats(x[:, self.num_globals :])

    def _states(
        self, global_vectors: Tensor, patch_vectors: Tensor, without_globals: Tensor | None
    ) -> Tensor:
        """(B, S, W), from each of which a code is predicted."""
        globals_in = torch.einsum("bkc,kcw->bkw", global_vectors, self.global_in)  # (B, K, W)
        if without_globals is not None:
            globals_in = torch.where(without_globals[:, None, None], self.no_global, globals_in)
        patches_in = self.patch_in(patch_vectors)  # (B, N, W)
        start = self.start.expand(len(globals_in), 1, -1)
        # Shifted right by one: step t reads code t - 1, and carries the position of the code that it predicts.
        x = torch.cat([start, globals_in, patches_in[:, :-1]], dim=1) + self.positions  # (B, S, W)
        return self.transformer(x, self.rotary)


def entropy_nats(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in nats, float32; (..., V) to (...).

    -Σ p ln p with ln p = (logit - largest logit) + ln of the largest p: one pass of exponentials, and only terms of one
    sign, so that nothing cancels.
    """
    probs = logits.softmax(dim=-1, dtype=torch.float32)
    below = logits.float() - logits.amax(dim=-1, keepdim=True)
    return -(probs.amax(dim=-1).log() + torch.linalg.vecdot(probs, below))


def surprisal_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """-ln p(code) in nats; logits (..., V) and codes (...) to (...) float32."""
    return F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)
