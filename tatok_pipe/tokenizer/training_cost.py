"""What a step of tokenizer training takes, before anything is started: arithmetic counted, memory by formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # torch.device("meta") knows no autocast
from torch.utils.flop_counter import FlopCounterMode

from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokenizer.training_options import TrainingConfig

# Bytes that a block keeps of each element for its backward pass, per channel of its width, in 16 bits (arXiv
# 2205.05198, equation 1), and of each entry of its attention matrices, which are written out on CPUs alone.
_BLOCK_BYTES = 34
_ATTENTION_BYTES = 4
_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class TrainingCost:
    """Of one worker, bytes; FLOPs are of one image."""

    num_weights: int
    tokenizer_flops: float  # encoder and decoder, forward and backward
    prior_flops: float  # entropy model, forward and backward
    state_bytes: float  # weights, gradients, both moments, average
    activation_bytes: float  # of one micro-batch

    def __str__(self) -> str:
        return (
            f"{self.num_weights / 1e6:.2f} M weights; an image takes {self.tokenizer_flops / 1e9:.1f} GFLOP to train "
            f"on, {self.prior_flops / 1e9:.1f} more in the entropy model; memory of a worker about "
            f"{(self.state_bytes + self.activation_bytes) / 2**30:.1f} GiB: weights, gradients and optimizer "
            f"{self.state_bytes / 2**30:.1f}, activations {self.activation_bytes / 2**30:.1f}"
        )


def estimate_training_cost(
    config: TaTokConfig, training: TrainingConfig, *, images_per_pass: int, device: torch.device
) -> TrainingCost:
    """Nothing is allocated: tensors are fake. Losses on features and the discriminator are not counted."""
    with FakeTensorMode():
        model = TaTok(config).eval()  # a vq codebook in training would move, and look at its counters
        images = torch.empty(1, 3, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as tokenizer, torch.no_grad():
            encoded = model.encode(images)
            keep = torch.ones(1, config.num_patches, dtype=torch.bool)
            model.reconstruct(encoded.globals.vectors, encoded.patches.vectors, keep)
        with FlopCounterMode(display=False) as prior, torch.no_grad():
            model.prior(*model.scaled(encoded.globals.vectors, encoded.patches.vectors))
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    copies = 5 if training.ema_decay else 4
    stacks: list[StackConfig | GridStackConfig] = [config.encoder, config.decoder]
    stacks += [config.prior] if training.is_prior_in_joint else []
    tokens = config.num_globals + config.num_patches
    scale = 1 if training.precision_on(device) == "bf16" else 2

    def kept(stack: StackConfig | GridStackConfig) -> float:
        attention = _ATTENTION_BYTES * stack.heads * tokens if device.type == "cpu" else 0
        if isinstance(stack, GridStackConfig):
            attention /= stack.attend_every
        return scale * stack.depth * tokens * (_BLOCK_BYTES * stack.width + attention)

    activations = sum(map(kept, stacks))
    if training.is_prior_in_joint:  # logits, their log-softmax and its gradient, in fp32
        activations += 3 * 4 * tokens * config.patch_codebook.vocab_size
    return TrainingCost(
        num_weights=num_weights,
        tokenizer_flops=_FORWARD_AND_BACKWARD * tokenizer.get_total_flops(),
        prior_flops=_FORWARD_AND_BACKWARD * prior.get_total_flops(),
        state_bytes=4 * copies * num_weights,
        activation_bytes=images_per_pass * activations,
    )
