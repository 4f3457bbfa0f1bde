from __future__ import annotations

import pytest
import torch

from tatok_pipe.nn.norm import RMSNorm


def library(width: int) -> torch.nn.RMSNorm:
    return torch.nn.RMSNorm(width, eps=1e-6)


@pytest.mark.parametrize("shape", [(6, 16), (5, 3, 16), (0, 16)])
def test_it_equals_the_library_with_its_gradients(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    seen, weight = torch.randn(shape, generator=generator), torch.randn(16, generator=generator)
    results = []
    for norm in (RMSNorm(16), library(16)):
        norm.weight.data.copy_(weight)
        y = norm(x)
        results.append([y, *torch.autograd.grad((y * seen).sum(), (x, norm.weight))])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_differences() -> None:
    norm = RMSNorm(8).double()
    assert torch.autograd.gradcheck(norm, torch.randn(3, 8, dtype=torch.float64, requires_grad=True))


def test_zeros_stay_zero_and_their_gradient_finite() -> None:
    x = torch.zeros(2, 16, requires_grad=True)
    y = RMSNorm(16)(x)
    y.sum().backward()
    assert not y.any() and x.grad is not None and x.grad.isfinite().all()


def test_bf16_keeps_its_dtype_and_is_computed_in_float32() -> None:
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    norm = RMSNorm(256)
    y = norm(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.detach().float()).bfloat16())
