"""The rate of codes: a true distribution over the levels, against scipy's logistic, and a gradient that asks for cheap
codes."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import logistic

from tatok_pipe.tokenizer.options import QuantizerConfig
from tatok_pipe.tokenizer.quantizer import FSQ
from tatok_pipe.tokenizer.rate import RateHead, scale_gradient


def head(levels: list[int]) -> tuple[FSQ, RateHead]:
    torch.manual_seed(0)
    quantizer = FSQ(QuantizerConfig(kind="fsq", levels=levels))
    made = RateHead(6, quantizer)
    torch.nn.init.normal_(made.out.weight, std=0.7)
    return quantizer, made


def all_nats(quantizer: FSQ, rate: RateHead, hidden: torch.Tensor) -> torch.Tensor:
    """The nats of every code at each hidden state (S, W): (S, V)."""
    vectors = quantizer.codes_to_vectors(torch.arange(quantizer.vocab_size))  # (V, C)
    return torch.stack([rate(state.expand(1, len(vectors), -1), vectors[None])[0] for state in hidden])


def test_likelihoods_of_all_codes_sum_to_one() -> None:
    for levels in ([8, 8, 4], [5, 3], [2, 7]):
        quantizer, rate = head(levels)
        nats = all_nats(quantizer, rate, torch.randn(5, 6))
        assert torch.allclose((-nats).exp().sum(1), torch.ones(5), atol=1e-5)


def test_a_dimension_is_the_mixture_that_scipy_gives() -> None:
    quantizer, rate = head([5])
    hidden = torch.randn(1, 6)
    weight, mean, log_scale = rate.out(hidden)[0].detach().double().view(2, 3).unbind(1)
    share = np.exp(weight - weight.logsumexp(0))
    edges = np.array([-np.inf, -1.5, -0.5, 0.5, 1.5, np.inf])
    cumulative = sum(
        float(share[i]) * logistic.cdf(edges, loc=float(mean[i]) * 2, scale=float(log_scale[i].exp()))
        for i in range(2)
    )
    expected = -np.log(np.diff(cumulative))
    assert np.allclose(all_nats(quantizer, rate, hidden)[0].detach(), expected, atol=1e-4)


def test_the_gradient_moves_a_latent_towards_what_is_predicted() -> None:
    quantizer = FSQ(QuantizerConfig(kind="fsq", levels=[8, 8]))
    rate = RateHead(6, quantizer)
    torch.nn.init.zeros_(rate.out.weight)  # every code is predicted to be the middle one
    latents = torch.tensor([[[1.2, -0.9]]], requires_grad=True)
    vectors = quantizer.quantize(latents).vectors
    rate(torch.zeros(1, 1, 6), vectors).sum().backward()
    assert latents.grad is not None
    assert latents.grad[0, 0, 0] > 0 > latents.grad[0, 0, 1]


def test_a_code_far_from_what_is_predicted_has_a_gradient() -> None:
    quantizer = FSQ(QuantizerConfig(kind="fsq", levels=[8]))
    rate = RateHead(6, quantizer)
    torch.nn.init.zeros_(rate.out.weight)
    rate.out.bias.data.view(2, 3)[:] = torch.tensor([0.0, -1.0, -2.5])  # both narrow, at the first level
    latents = torch.tensor([[[0.9]]], requires_grad=True)
    nats = rate(torch.zeros(1, 1, 6), quantizer.quantize(latents).vectors)
    nats.sum().backward()
    assert latents.grad is not None and rate.out.bias.grad is not None
    assert float(nats) > 20 and float(latents.grad) > 1
    assert rate.out.bias.grad.view(2, 3)[:, 1].sum() < -1  # and the mean is drawn towards the code


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = torch.randn(7, requires_grad=True)
    for factor in (0.3, 1.0, 0.02):
        y = scale_gradient(x, factor)
        assert torch.equal(y, x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(grad, torch.full_like(grad, factor))
    assert not scale_gradient(x, 0).requires_grad
