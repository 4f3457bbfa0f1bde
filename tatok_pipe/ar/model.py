"""The generator: a decoder-only transformer over packed token sequences of any length.

A sequence is `[condition] g_1 … g_K (pos_1, code_1) … (pos_M, code_M) END`, one element each for the condition, the
globals and the kept patches in raster order. An element's hidden state predicts what comes next in its sequence: a
global code, or a position and then, given that position, the code there. p(sequence) is the product of these, and
sums to 1 over all sequences.

Letters: T elements, S sequences, K globals, N patch places, V_g and V_p codes, W width, L blocks, H heads,
D = W / H head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tatok_pipe.ar.batch import BatchTensors, Vocabulary
from tatok_pipe.ar.heads import CodeHead, PositionHead, nats_and_log_partition
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.nn.blocks import SwiGLU
from tatok_pipe.nn.norm import RMSNorm
from tatok_pipe.nn.packed import attend_packed
from tatok_pipe.nn.rotary import rotary_table, rotate

WEIGHT_STD = 0.02  # that weights begin with
# Queries, keys and values of elements, (T, H, D) each, to what they attend to, (T, H, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Nats:
    """What the elements of a batch cost, (T,) float32 each; 0 where an element predicts no such thing."""

    position: Tensor  # -ln p(next position), END included
    code: Tensor  # -ln p(next code), of a global or of a patch at its position
    z: Tensor  # squares of the log-partitions of these, summed: PaLM's z-loss without its weight

    @property
    def total(self) -> Tensor:
        """(T,); its sum over a sequence is -ln p(sequence)."""
        return self.position + self.code


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries and keys are normalised, which keeps bf16 stable."""

    def __init__(self, width: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = RMSNorm(width // num_heads)
        self.key_norm = RMSNorm(width // num_heads)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """(T, W) to (T, W), with the elements' rotations (T, D/2, 2). `attend` says what they see, be it a packed
        batch or the caches of T sequences that take one step each."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(-3)  # (T, H, D) each
        rotary = rotary[:, None]
        # Autocast gives norms in float32; attention wants one dtype.
        query = rotate(self.query_norm(query).to(value.dtype), rotary)
        key = rotate(self.key_norm(key).to(value.dtype), rotary)
        x = x + self.dropout(self.out(attend(query, key, value).flatten(-2)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Generator(nn.Module):
    """The model and its parts: training calls it on a batch, a sampler calls `embed_*`, `blocks`, `norm` and the heads
    one step at a time."""

    # (max_length, D/2, 2) float32, by spot. Of the place in the image, as in LlamaGen, and not of the index in the
    # sequence: how far away in it the patch above is depends on how many were dropped between.
    rotary: Tensor

    def __init__(self, config: GeneratorConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        width = config.width
        if config.condition == "class":
            if not config.num_classes:
                raise ValueError("num_classes=0: expected at least 1, as it is known by now")
            self.classes = nn.Embedding(config.num_classes + 1, width)  # the last: no class
        elif config.condition == "embedding":
            self.project = nn.Linear(config.embedding_dim, width)
            self.no_embedding = nn.Parameter(torch.randn(width) * WEIGHT_STD)
        else:
            self.start = nn.Parameter(torch.randn(width) * WEIGHT_STD)
        if config.num_budgets:
            self.budgets = nn.Embedding(config.num_budgets + 1, width)  # the last: any number of patches
        self.global_codes = nn.Embedding(vocabulary.global_vocab, width)
        self.global_slots = nn.Embedding(max(1, vocabulary.num_globals), width)
        self.patch_codes = nn.Embedding(vocabulary.patch_vocab, width)
        # A row a place and not one a row and one a column of the grid: every batch trains all of them, and they are
        # less than 1 % of the weights.
        self.patch_places = nn.Embedding(vocabulary.num_patches, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, dropout=config.dropout) for _ in range(config.depth)
        )
        self.norm = RMSNorm(width)
        self.global_head = nn.Linear(width, vocabulary.global_vocab, bias=False)
        self.position_head = PositionHead(width, num_patches=vocabulary.num_patches)
        self.code_head = CodeHead(width, num_patches=vocabulary.num_patches, vocab=vocabulary.patch_vocab)
        table = rotary_table(vocabulary.coordinates(), head_dim=width // config.heads)
        self.register_buffer("rotary", table, persistent=False)
        self._init_weights()

    def forward(self, batch: BatchTensors) -> Nats:
        """The nats of every element, given those before it in its sequence. Padding costs nothing, and a batch of
        padding alone has zero gradients for every parameter."""
        hidden = self.hidden(batch)
        # What precedes a global or a patch is in the same sequence: there is a condition before them all.
        global_from, patch_from = batch.global_at - 1, batch.patch_at - 1
        global_nats, global_z = nats_and_log_partition(
            self.global_logits(hidden[global_from]), batch.codes[batch.global_at]
        )
        position_nats, position_z = nats_and_log_partition(
            self.position_logits(hidden[batch.position_at], batch.last_positions), batch.position_targets
        )
        code_nats, code_z = nats_and_log_partition(
            self.code_logits(hidden[patch_from], batch.places[batch.patch_at]), batch.codes[batch.patch_at]
        )
        zeros = torch.zeros(batch.num_elements, device=hidden.device)
        return Nats(
            position=zeros.index_add(0, batch.position_at, position_nats),
            code=zeros.index_add(0, global_from, global_nats).index_add(0, patch_from, code_nats),
            z=zeros.index_add(0, global_from, global_z.square())
            .index_add(0, batch.position_at, position_z.square())
            .index_add(0, patch_from, code_z.square()),
        )

    def hidden(self, batch: BatchTensors) -> Tensor:
        """The normalised hidden state of every element, (T, W)."""
        condition = self.embed_condition(
            batch.labels, batch.is_conditional, batch.asked_patches, batch.embeddings
        )
        global_at, patch_at = batch.global_at, batch.patch_at
        x = torch.zeros(
            batch.num_elements,
            self.config.width,
            device=condition.device,
            dtype=self.patch_codes.weight.dtype,
        )
        for at, embedded in (
            (batch.condition_at, condition),
            (global_at, self.embed_global(batch.codes[global_at], batch.places[global_at])),
            (patch_at, self.embed_patch(batch.codes[patch_at], batch.places[patch_at])),
        ):
            x = x.index_copy(0, at, embedded.to(x.dtype))
        x = self.dropout(x)
        rotary = self.rotary[batch.spots]  # (T, D/2, 2)
        attend = partial(attend_packed, boundaries=batch.boundaries, max_length=self.vocabulary.max_length)
        for block in self.blocks:
            x = block(x, rotary, attend)
        return self.norm(x)

    def embed_condition(
        self,
        labels: Tensor,
        is_conditional: Tensor,
        asked_patches: Tensor,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """Classes (S,) int64, or embeddings (S, E), to the first elements (S, W); the learned null condition where
        `is_conditional` (S,) is False. Without a condition only S matters, every sequence starts alike. With budgets,
        that of `asked_patches` (S,) patches is added; -1 is any number."""
        if self.config.condition == "class":
            x = self.classes(torch.where(is_conditional, labels, self.config.num_classes))
        elif self.config.condition == "embedding":
            if embeddings is None:
                raise ValueError("embeddings=None: expected vectors (S, E) with condition=embedding")
            x = torch.where(is_conditional[:, None], self.project(embeddings), self.no_embedding)
        else:
            x = self.start.expand(len(labels), -1)
        num_budgets = self.config.num_budgets
        if not num_budgets:
            return x
        buckets = asked_patches * num_budgets // (self.vocabulary.num_patches + 1)
        return x + self.budgets(torch.where(asked_patches >= 0, buckets, num_budgets))

    def embed_global(self, codes: Tensor, slots: Tensor) -> Tensor:
        """Codes and indices of globals, (...) int64 each, to elements (..., W)."""
        return self.global_codes(codes) + self.global_slots(slots)

    def embed_patch(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Codes and positions of patches, (...) int64 each, to elements (..., W)."""
        return self.patch_codes(codes) + self.patch_places(positions)

    def global_logits(self, hidden: Tensor) -> Tensor:
        """(..., W) of what precedes a global to (..., V_g)."""
        return self.global_head(hidden)

    def position_logits(self, hidden: Tensor, last_position: Tensor) -> Tensor:
        """(..., W) of the last global or of a patch, and its position (...), -1 for the global, to (..., N + 1)
        float32; N is END."""
        return self.position_head(hidden, last_position)

    def code_logits(self, hidden: Tensor, position: Tensor) -> Tensor:
        """(..., W) of what precedes a patch, and the patch's position (...), to (..., V_p)."""
        return self.code_head(hidden, position)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, mean_length: float) -> float:
        """FLOPs of a forward and backward pass per element of a sequence of `mean_length` elements.

        6 per weight of the matrices that the element goes through, and 12·L·W per element that it attends to, of which
        causal attention has (mean_length + 1) / 2 (PaLM, arXiv 2204.02311, appendix B, there without the half;
        Kaplan et al., arXiv 2001.08361, table 1). Of the heads each element goes through its own; embeddings,
        norms and the recomputing of activations do not count.
        """
        width, vocabulary = self.config.width, self.vocabulary
        num_patches = mean_length - 1 - vocabulary.num_globals
        head_weights = (
            vocabulary.num_globals * _matrix_weights(self.global_head)
            + (num_patches + 1) * _matrix_weights(self.position_head)
            + num_patches * (_matrix_weights(self.code_head) - vocabulary.num_patches * width)
        )
        attention = 12 * self.config.depth * width * (mean_length + 1) / 2
        return 6 * (_matrix_weights(self.blocks) + head_weights / mean_length) + attention

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=WEIGHT_STD)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            # Residual branches start small, so that depth does not change the variance at the output.
            for projection in (block.out, block.mlp.down):
                nn.init.normal_(projection.weight, std=WEIGHT_STD / math.sqrt(2 * self.config.depth))


def _matrix_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)
