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
from tatok_pipe.tokenizer.quantizer import FSQ, CosineVQ


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

    def __init__(self, width: int, quantizer: FSQ | CosineVQ):
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
        weight = self.rows
        if hasattr(self, "level_rows"):
            weight = weight + self.level_rows[self.level_index].sum(dim=1)  # (V, W)
        return F.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))


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
        global_quantizer: FSQ | CosineVQ,
        patch_quantizer: FSQ | CosineVQ,
    ):
        super().__init__()
        self.num_globals = num_globals
        self.global_in = nn.Linear(global_quantizer.dim, width)
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

        `global_vectors` (B, K, C_g) and `patch_vectors` (B, N, C_p) are the code vectors. `without_globals`
        (B,) bool hides all globals of the marked images; their `global_logits` mean nothing then.
        """
        globals_in = self.global_in(global_vectors)  # (B, K, W)
        if without_globals is not None:
            globals_in = torch.where(without_globals[:, None, None], self.no_global, globals_in)
        patches_in = self.patch_in(patch_vectors)  # (B, N, W)
        start = self.start.expand(len(globals_in), 1, -1)
        # Shifted right by one: step t reads code t - 1, and carries the position of the code that it predicts.
        x = torch.cat([start, globals_in, patches_in[:, :-1]], dim=1) + self.positions  # (B, S, W)
        x = self.transformer(x, self.rotary)
        return PriorOutput(
            self.global_head(x[:, : self.num_globals]), self.patch_head(x[:, self.num_globals :]), x
        )


def entropy_nats(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in nats, float32; (..., V) to (...)."""
    log_probs = logits.float().log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def surprisal_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """-ln p(code) in nats; logits (..., V) and codes (...) to (...) float32."""
    return F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)
