"""The plan of a worker's memory: exact where it can be, and in proportion where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.memory import MemoryEstimate, estimate_memory
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tests.ar.trainings import MODEL, TRAINING, VOCABULARY, make_loader, make_trainer, tensors
from tests.token_datasets import make_rows, write_token_dataset

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def estimate(
    training: TrainingConfig = TRAINING,
    model: GeneratorConfig = MODEL,
    *,
    row_tokens: int = 64,
    num_shards: int = 1,
    device: torch.device = CPU,
) -> MemoryEstimate:
    with torch.device("meta"):
        generator = Generator(model, VOCABULARY)
    return estimate_memory(generator, training, row_tokens=row_tokens, num_shards=num_shards, device=device)


def test_the_state_is_what_a_training_holds() -> None:
    trainer = make_trainer()
    parameters = list(trainer.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    assert trainer.average is not None
    moments = [
        state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None), *moments]
    held += trainer.average.weights.values()
    found = estimate()
    assert found.num_weights == sum(parameter.numel() for parameter in parameters)
    assert found.state_bytes == sum(tensor.nbytes for tensor in held)
    without = replace(TRAINING, optimizer=replace(TRAINING.optimizer, ema_decay=0.0))
    assert estimate(without).state_bytes == found.state_bytes * 4 / 5


def test_what_makes_it_less() -> None:
    whole = estimate()
    shared = estimate(num_shards=4)
    assert shared.state_bytes == whole.state_bytes / 4
    assert (shared.num_weights, shared.activation_bytes) == (whole.num_weights, whole.activation_bytes)
    recomputed = estimate(replace(TRAINING, checkpoint_activations=True))
    assert recomputed.activation_bytes < whole.activation_bytes
    assert recomputed.state_bytes == whole.state_bytes
    assert estimate(device=GPU).activation_bytes < whole.activation_bytes  # bf16 there
    assert estimate(device=GPU).state_bytes == whole.state_bytes  # weights stay fp32
    assert estimate(replace(TRAINING, microbatch_rows=1)).activation_bytes == whole.activation_bytes / 2
    assert estimate(row_tokens=128).activation_bytes == whole.activation_bytes * 2


def test_a_generator_of_llamagens_size_is_as_large_as_it_says() -> None:
    with torch.device("meta"):
        model = Generator(GeneratorConfig(num_classes=1000), Vocabulary(32, 256, 4096, 4096))
    found = estimate_memory(model, TrainingConfig(), row_tokens=4096, num_shards=1, device=GPU)
    assert 85e6 < found.num_weights < 130e6  # LlamaGen-B: 111 M
    assert found.state_bytes == 16 * found.num_weights
    # 34 bytes a channel and block of 32,768 elements: 10.3 GB, and 1.6 GB of logits.
    assert found.activation_bytes == pytest.approx(34 * 32_768 * 768 * 12 + 12 * 32_768 * 4096)
    assert str(found) == (
        f"{(found.state_bytes + found.activation_bytes) / 2**30:.1f} GiB: weights, gradients and optimizer "
        f"{found.state_bytes / 2**30:.1f}, activations {found.activation_bytes / 2**30:.1f}"
    )


@pytest.mark.parametrize("width", [64, 256])
def test_activations_are_about_what_autograd_keeps(width: int, tmp_path: Path) -> None:
    url = str(tmp_path / "tokens")
    write_token_dataset(url, [make_rows(60)])
    loader = make_loader(url, row_tokens=128, rows_per_step=2)
    model = replace(MODEL, width=width, depth=4)
    trainer = make_trainer(model=model)
    held = {
        tensor.untyped_storage().data_ptr() for tensor in [*trainer.model.parameters(), trainer.model.rotary]
    }
    kept: dict[int, Tensor] = {}  # also keeps them alive, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.network(tensors(next(iter(loader)))[0])
    num_bytes = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in held)
    expected = estimate(model=model, row_tokens=128).activation_bytes
    assert 0.5 * expected < num_bytes < 2 * expected
