"""Draws against numpy, their uniform numbers, and what top-k and top-p leave."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tatok_pipe.ar.draws import draw, truncate, uniforms
from tatok_pipe.ar.options import DrawConfig


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    """The same arithmetic in Python's integers."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    seeds, counters = [0, 1, -1, 2**63 - 1, -(2**63), 12345], [0, 1, 2, 511, 3, 10**6]
    expected = [
        (mix((mix(seed & mask) + (counter + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) / 2**53
        for seed, counter in zip(seeds, counters, strict=True)
    ]
    assert uniforms(torch.tensor(seeds), torch.tensor(counters)).tolist() == expected


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    seeds = torch.arange(200)[:, None].expand(200, 50).flatten()  # neighbours, as seeds of images may be
    numbers = uniforms(seeds, torch.arange(50).repeat(200)).numpy()
    assert len(set(numbers.tolist())) == 10_000
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi square of 19 degrees of freedom, 0.1 %
    grid = numbers.reshape(200, 50)
    for ours, theirs in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
        assert abs(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) < 4 / math.sqrt(ours.size)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_are_those_of_the_inverse_distribution(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 40, generator=generator)
    logits[:, 7] = float("-inf")
    numbers = torch.rand(500, generator=generator, dtype=torch.float64)
    found = draw(logits, numbers, DrawConfig(temperature=temperature)).numpy()
    weights = np.exp(logits.double().numpy() / temperature)
    cumulative = (weights / weights.sum(axis=1, keepdims=True)).cumsum(axis=1)
    expected = (cumulative <= numbers.numpy()[:, None]).sum(axis=1)
    assert (found == expected).all() and 7 not in found and len(set(found.tolist())) > 30


def test_the_ends_of_the_distribution_can_be_drawn() -> None:
    logits = torch.zeros(2, 5)
    logits[:, 0] = logits[:, 4] = float("-inf")
    almost_one = 1 - 2.0**-53
    assert draw(logits, torch.tensor([0.0, almost_one], dtype=torch.float64), DrawConfig()).tolist() == [1, 3]
    # Nothing else can be.
    only = torch.full((1, 3), float("-inf"))
    only[0, 2] = -1000.0
    assert draw(only, torch.tensor([0.7]), DrawConfig()).tolist() == [2]


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(20, 30)
    assert torch.equal(draw(logits, torch.rand(20).double(), DrawConfig(temperature=0)), logits.argmax(1))


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()

    def kept(*, top_k: int = 0, top_p: float = 1.0) -> list[int]:
        return torch.isfinite(truncate(logits, top_k=top_k, top_p=top_p))[0].nonzero()[:, 0].tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=1) == [0] and kept(top_k=3) == [0, 2, 3] and kept(top_k=9) == [0, 1, 2, 3]
    # As many as it takes to reach the probability.
    assert kept(top_p=0.01) == [0] and kept(top_p=0.41) == [0, 2] and kept(top_p=0.75) == [0, 2, 3]
    # Of 0.4 and 0.3 that top-k leaves, the first has 0.57.
    assert kept(top_k=2, top_p=0.5) == [0] and kept(top_k=2, top_p=0.6) == [0, 2]
    tied = torch.zeros(1, 4)
    assert torch.isfinite(truncate(tied, top_k=2, top_p=1)).all()


def test_truncated_outcomes_are_never_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 50, generator=generator).expand(2000, 50)
    numbers = torch.rand(2000, generator=generator, dtype=torch.float64)
    found = set(draw(logits, numbers, DrawConfig(top_k=5)).tolist())
    assert found == set(logits[0].topk(5).indices.tolist())


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"guidance": -1}]
)
def test_settings_that_cannot_be(options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        DrawConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-29, 1e-30, 1e-38, 1e-40, 5e-324])
def test_a_tiny_temperature_draws_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[0.0, 10.0, 9.9, -5.0, float("-inf")]]).repeat(3, 1)
    chance = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert draw(logits, chance, DrawConfig(temperature=temperature)).tolist() == [1, 1, 1]
