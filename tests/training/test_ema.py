"""The average of weights: its recursion by hand, and that the model gets its own back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tatok_pipe.training.ema import WeightAverage


def test_the_recursion_by_hand() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, decay=0.3)
    expected = model.weight.detach().clone()
    for update in range(5):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.weights["weight"], expected)
    assert average.num_updates == 5


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_gets_its_own_weights_back(error: type[BaseException] | None) -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(7.0)
    mean, bias = average.weights["weight"].clone(), model.bias.detach().clone()
    try:
        with average.in_place():
            assert torch.equal(model.weight, mean)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert torch.equal(model.weight, torch.full((1, 2), 7.0)) and torch.equal(model.bias, bias)
    assert torch.equal(average.weights["weight"], mean)
