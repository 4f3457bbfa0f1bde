"""How the generator is spread over processes and compiled; the model itself knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import TrainingConfig
from tatok_pipe.ar.trainer import LossGraph

_SHARD_FROM_WEIGHTS = 500_000_000  # fp32 weights, gradients, two moments: 8 GB of every GPU from here on


@dataclass(frozen=True)
class Parallel:
    """A network for `GeneratorTrainer`, and the switch for the exchange of its gradients."""

    network: nn.Module
    set_sync: Callable[[bool], None]


def parallelize(
    model: Generator, config: TrainingConfig, *, device: torch.device, num_ranks: int
) -> Parallel:
    """Wrap `model` (already on `device`) for `num_ranks` processes; a process group must exist where they are several.

    In place: blocks recompute their activations, are compiled, and with sharding the weights become parts.
    """
    if config.checkpoint_activations:
        for block in model.blocks:
            _recompute(block)
    if config.compile == "yes" or (config.compile == "auto" and device.type == "cuda"):
        for block in model.blocks:  # blocks are alike, so one compilation serves all
            block.compile(dynamic=False)
    network: nn.Module = LossGraph(model, z_loss=config.optimizer.z_loss)
    if is_sharded(model, config, device=device, num_ranks=num_ranks):
        policy = MixedPrecisionPolicy()
        if config.precision_on(device) == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mp_policy=policy)
        sharded: Any = fully_shard(network, mp_policy=policy)
        return Parallel(sharded, sharded.set_requires_gradient_sync)
    if num_ranks == 1:
        return Parallel(network, lambda is_last: None)
    replicated = DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )

    def set_sync(is_last: bool) -> None:
        replicated.require_backward_grad_sync = is_last

    return Parallel(replicated, set_sync)


def is_sharded(model: nn.Module, config: TrainingConfig, *, device: torch.device, num_ranks: int) -> bool:
    """Whether weights are split over the processes."""
    if config.shard != "auto":
        return config.shard == "yes"
    num_weights = sum(p.numel() for p in model.parameters())
    return device.type == "cuda" and num_ranks > 1 and num_weights > _SHARD_FROM_WEIGHTS


def _recompute(block: nn.Module) -> None:
    """Keep the block's input and compute its activations again in the backward pass. No module is wrapped, so the
    names of the weights stay what they are."""
    forward = block.forward

    def recomputed(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options)

    block.forward = recomputed
