"""Packed attention against one masked product over all elements, written with loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tatok_pipe.nn import packed
from tatok_pipe.nn.packed import attend_packed

BOUNDARIES = [0, 5, 6, 17, 30]


def oracle(query: Tensor, key: Tensor, value: Tensor, boundaries: list[int]) -> Tensor:
    out = torch.empty_like(query)
    for start, stop in zip(boundaries[:-1], boundaries[1:], strict=True):
        for t in range(start, stop):
            scores = torch.einsum("hd,thd->ht", query[t], key[start : t + 1]) / query.shape[-1] ** 0.5
            out[t] = torch.einsum("ht,thd->hd", scores.softmax(-1), value[start : t + 1])
    return out


def draw(num_elements: int = BOUNDARIES[-1], *, head_dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, num_elements, 3, head_dim)  # query, key and value of 3 heads
    query, key, value = torch.randn(shape, generator=generator).unbind()
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


@pytest.mark.parametrize("tail", [[], [30, 30, 30]], ids=["exact", "with empty stretches"])
@pytest.mark.parametrize("attend", [packed._attend_each, packed._attend_masked])
def test_it_equals_the_oracle_with_its_gradients(attend, tail: list[int]) -> None:
    qkv = draw()
    seen = torch.randn(30, 3, 8)
    expected = oracle(*qkv, BOUNDARIES)
    expected_grads = torch.autograd.grad((expected * seen).sum(), qkv)
    mixed = attend(*qkv, torch.tensor(BOUNDARIES + tail, dtype=torch.int32))
    grads = torch.autograd.grad((mixed * seen).sum(), qkv)
    assert mixed.shape == (30, 3, 8)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=0)


def test_the_boundaries_matter() -> None:
    qkv = draw()
    apart = attend_packed(*qkv, torch.tensor(BOUNDARIES, dtype=torch.int32), max_length=30)
    together = attend_packed(*qkv, torch.tensor([0, 30], dtype=torch.int32), max_length=30)
    assert torch.allclose(apart[:5], together[:5], atol=1e-6)
    assert not torch.isclose(apart[5:], together[5:], atol=1e-3).all(-1).all(-1).any()


def test_one_stretch_may_be_the_whole_row() -> None:
    qkv = draw(1)
    mixed = attend_packed(*qkv, torch.tensor([0, 1, 1], dtype=torch.int32), max_length=1)
    torch.testing.assert_close(mixed, qkv[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gpu_agrees_with_cpu(dtype: torch.dtype) -> None:
    boundaries = torch.tensor([*BOUNDARIES, 30, 30], dtype=torch.int32)
    results = []
    for device in ("cpu", "cuda"):
        cast = torch.float32 if device == "cpu" else dtype
        query, key, value = (
            x.detach().to(dtype).to(device, cast).requires_grad_() for x in draw(head_dim=64)
        )
        mixed = attend_packed(query, key, value, boundaries.to(device), max_length=32)
        results.append([mixed, *torch.autograd.grad(mixed.square().sum(), (query, key, value))])
    for cpu, gpu in zip(*results, strict=True):
        tolerance = 1e-4 if dtype is torch.float32 else 0.05
        torch.testing.assert_close(gpu.float().cpu(), cpu, atol=tolerance, rtol=tolerance)
