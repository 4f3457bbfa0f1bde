#!/usr/bin/env bash
# Guess: torch.optim.Muon works in the dtype of its parameters, as every other optimizer of torch.optim does, so float32
# weights on a CPU take float32 steps.
# In fact it rounds the gradient to bfloat16 and does all of its matrix products in it, on any device and for any dtype
# of the weights: float32 and float64 weights take steps that have 8 bits of mantissa. There is no option for it.
# It matters here because the tokenizer is also trained on CPUs: one without bf16 instructions emulates the products,
# and the step of a model of 1 M weights in matrices took 0.89 s, and 0.03 s in float32 (two cores, AVX2).
# Seen: torch 2.13.0: "float32: 4096 of 4096 entries of a step are bfloat16", "float64: 4096 of 4096 …", "SGD: few of 4096".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def step(make, dtype):
    """Of a 64 × 64 matrix that is 0, by a learning rate of 1: what the optimizer added to it."""
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    make([weight]).step()
    return weight.detach()


def count_bf16(value):
    return int((value.bfloat16().to(value.dtype) == value).sum())


muon = lambda params: torch.optim.Muon(params, lr=1.0, weight_decay=0.0, adjust_lr_fn="original")
for dtype in (torch.float32, torch.float64):
    found = count_bf16(step(muon, dtype))
    print(f"{str(dtype).removeprefix('torch.')}: {found} of 4096 entries of a step are bfloat16")
    assert found == 4096
plain = count_bf16(step(lambda params: torch.optim.SGD(params, lr=1.0), torch.float32))
print(f"SGD: {plain} of 4096")
assert plain < 200
PYTHON
