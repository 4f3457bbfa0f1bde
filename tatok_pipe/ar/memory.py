"""How much memory a worker of a training takes, by formula: for plans, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import TrainingConfig

# Bytes that a block keeps of each element for its backward pass, per channel of its width, in 16 bits without the
# attention matrix: 34 for a GELU block (arXiv 2205.05198, equation 1); SwiGLU keeps three vectors of 8/3 of the width
# where GELU keeps two of 4.
_BLOCK_BYTES = 34
_RECOMPUTED_BYTES = 2  # the input of the block alone


@dataclass(frozen=True)
class MemoryEstimate:
    """Of one worker, bytes."""

    num_weights: int
    state_bytes: float  # weights, gradients, both moments, average
    activation_bytes: float  # of one micro-batch, blocks and logits

    def __str__(self) -> str:
        total = (self.state_bytes + self.activation_bytes) / 2**30
        return (
            f"{total:.1f} GiB: weights, gradients and optimizer {self.state_bytes / 2**30:.1f}, activations "
            f"{self.activation_bytes / 2**30:.1f}"
        )


def estimate_memory(
    model: Generator, config: TrainingConfig, *, row_tokens: int, num_shards: int, device: torch.device
) -> MemoryEstimate:
    """`num_shards` workers share weights, gradients and optimizer. The model may be on the meta device."""
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    copies = 5 if config.optimizer.ema_decay else 4
    is_bf16 = config.precision_on(device) == "bf16"
    elements = config.microbatch_rows * row_tokens
    per_channel = _BLOCK_BYTES * model.config.depth
    if config.checkpoint_activations:  # all inputs, and the one block that is computed again
        per_channel = _RECOMPUTED_BYTES * model.config.depth + _BLOCK_BYTES
    blocks = elements * per_channel * model.config.width * (1 if is_bf16 else 2)
    # Logits, their log-softmax and its gradient, in fp32 whatever the precision.
    logits = 3 * 4 * elements * max(model.vocabulary.patch_vocab, model.vocabulary.num_patches + 1)
    return MemoryEstimate(num_weights, 4 * copies * num_weights / num_shards, blocks + logits)
