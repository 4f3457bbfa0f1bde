"""Steps of Muon beside the singular value decomposition and torch's own."""

from __future__ import annotations

import pytest
import torch

from tatok_pipe.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(12, 12), (20, 7), (7, 20)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(left.t() @ found @ right.t())
    assert found.dtype == torch.float32 and found.shape == shape
    assert values.min() > 0.6 and values.max() < 1.3
    rest = left.t() @ found @ right.t() - torch.diag(values)
    assert rest.abs().max() < 1e-3


def test_steps_are_those_of_torch_but_for_their_precision() -> None:
    start = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = Muon([{"params": [mine]}], lr=0.1, weight_decay=0.05)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.05, adjust_lr_fn="original")
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        gradient = torch.randn(24, 8, generator=random)
        for parameter, optimizer in ((mine, ours), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(mine, theirs, atol=0.02) and not torch.allclose(mine, start, atol=0.1)
