from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tatok_pipe.nn.blocks import SwiGLU, Transformer, attend
from tatok_pipe.nn.rotary import rotary_table


def test_attention_equals_the_library_kernel() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    for causal in (False, True):
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        assert torch.allclose(attend(query, key, value, causal=causal), expected, atol=1e-5)


def test_a_causal_stack_sees_no_future_and_a_bidirectional_one_does() -> None:
    torch.manual_seed(0)
    table = rotary_table(torch.arange(6.0)[:, None], head_dim=8)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[0, 4] = torch.randn(16)  # not a shift: the norms would take that out again
    for causal in (True, False):
        stack = Transformer(width=16, depth=2, num_heads=2, causal=causal).eval()
        same = torch.isclose(stack(x, table), stack(changed, table), atol=1e-6).all(-1)[0]
        assert same[:4].all().item() == causal
        assert not same[4:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_gated_mlp_are_autograds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = SwiGLU(24).to(dtype)
    x = torch.randn(3, 5, 24, dtype=dtype, requires_grad=True)
    gate, up = mlp.gate_up(x).chunk(2, dim=-1)
    written_out = mlp.down(F.silu(gate) * up)
    weights = [x, *mlp.parameters()]
    expected = torch.autograd.grad(written_out.square().sum(), weights)
    found = mlp(x)
    assert torch.equal(found, written_out)
    for ours, theirs in zip(torch.autograd.grad(found.square().sum(), weights), expected, strict=True):
        assert torch.equal(ours, theirs) and ours.any()
    with torch.no_grad():
        assert torch.equal(mlp(x), written_out)
