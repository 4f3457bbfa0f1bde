"""Keys and values of what each of R sequences has seen so far, in memory of a fixed size.

Letters: R rows, H heads, L elements that a row has room for, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.model import Attend

# The cache is read up to a multiple of this. Products of other sizes are summed up in another order on CPUs, so that
# what one sequence sees would depend, in its last bits, on how long the others are.
_STEP = 16


class KeyValueCache:
    """A row is used again and again: an element with order 0 begins a new sequence, and what is left of the one
    before is not seen."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_heads: int,
        length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        is_static: bool,
    ) -> None:
        """`is_static`: attention always reads all of the cache, so that every step is the same program, as compilers
        and CUDA graphs need it; else only what there is, and a row's result is the same, bit for bit, whatever the
        other rows are."""
        self._is_static = is_static
        if not is_static:
            length = -(-length // _STEP) * _STEP
        shape = (num_layers, num_rows, num_heads, length, head_dim)
        # Zeros: what is not seen is multiplied by zero, which makes no zero of NaN.
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        if not is_static:
            self._keys = self._keys.transpose(-1, -2).contiguous()  # as `_attend_exactly` reads them
        self._rows = torch.arange(num_rows, device=device)
        self._places = torch.arange(length, device=device)

    def attends(self, order: Tensor) -> list[Attend]:
        """For one more element of every row, with its order (R,) in its sequence, a function for each layer: it takes
        keys and values in, and attends over the sequence up to them."""
        if not self._is_static:
            length = -(-(int(order.max()) + 1) // _STEP) * _STEP
            hidden = self._places[:length] > order[:, None]  # (R, length)
            return [self._attend_exactly(layer, order, hidden) for layer in range(len(self._keys))]
        visible = self._places <= order[:, None]  # (R, L)
        return [self._attend(layer, order, visible) for layer in range(len(self._keys))]

    def _attend(self, layer: int, order: Tensor, visible: Tensor) -> Attend:
        keys, values, mask = self._keys[layer], self._values[layer], visible[:, None, None]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys[self._rows, :, order] = key
            values[self._rows, :, order] = value
            return F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask)[:, :, 0]

        return attend

    def _attend_exactly(self, layer: int, order: Tensor, hidden: Tensor) -> Attend:
        """Written out: the fused kernel's result for a row depends on how many rows there are, in its last bits."""
        keys, values, length = self._keys[layer], self._values[layer], hidden.shape[1]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys[self._rows, :, :, order] = key
            values[self._rows, :, order] = value
            query = (query * query.shape[-1] ** -0.5)[:, :, None]  # (R, H, 1, D)
            scores = (query @ keys[..., :length]).masked_fill(hidden[:, None, None], float("-inf"))
            return (scores.softmax(dim=-1) @ values[:, :, :length])[:, :, 0]

        return attend
