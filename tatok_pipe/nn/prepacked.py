"""Linear layers for generating on CPUs: their weights are laid out once, as oneDNN's kernels read them.

A step of generation multiplies few rows by large matrices. `F.linear` lays the matrix out anew in every call and
takes another way for few rows than for many, so that a row's last bits depend on how many there are. Laid out ahead,
a row's result is the same in any batch, by any number of threads; and 4 rows by 768 × 2304 take 206 instead of 483 µs,
1 row 112 instead of 177 µs (float32, two cores with AVX2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows for which oneDNN chooses the layout; all calls use the same one.
_LAYOUT_ROWS = 64


class PrepackedLinear(nn.Module):
    """What `linear` computes, without gradients: (..., I) float32 to (..., O)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        # What torch.compile turns linear layers into on CPUs. torch.utils.mkldnn, the public way, goes through
        # tensors of another kind and back in every call, which costs more than it saves.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


def prepack(module: nn.Module) -> None:
    """Replace every linear layer within `module` that can be, in place: float32 ones on a CPU with oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, child in module.named_children():
        if (
            isinstance(child, nn.Linear)
            and child.weight.device.type == "cpu"
            and child.weight.dtype == torch.float32
        ):
            setattr(module, name, PrepackedLinear(child))
        else:
            prepack(child)
