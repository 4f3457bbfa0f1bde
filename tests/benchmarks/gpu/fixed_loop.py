"""Images as LlamaGen draws them: a static batch, every sequence with a code at all of its places, and no positions.

The other side of the sampler, by the weights of the same Generator and with the same means: a key-value cache of fixed
size that attention reads whole under a mask, a step that is one CUDA graph, compiled where the sampler is.
tests/benchmarks/generation.py has such a loop for CPUs, which reads the cache as far as it is filled; there each step
has another shape, which on a GPU would be another program.

Letters: B sequences, L elements of one, H heads, D head dimension, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.draws import draw, uniforms
from tatok_pipe.ar.model import Attend, Generator
from tatok_pipe.ar.options import DrawConfig
from tests.benchmarks.gpu.device import Device


class FixedLoop:
    def __init__(
        self, model: Generator, *, batch: int, device: Device, dtype: torch.dtype, is_compiled: bool
    ) -> None:
        self.batch = batch
        self._model = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
        self._rotary = model.rotary  # the copy's is rounded
        config, vocabulary = model.config, model.vocabulary
        self._num_globals = vocabulary.num_globals
        self.num_steps = vocabulary.max_length - 1
        shape = (config.depth, batch, config.heads, vocabulary.max_length, config.width // config.heads)
        on = device.device
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=on) for _ in range(2))
        self._places = torch.arange(vocabulary.max_length, device=on)
        self._seeds = torch.arange(batch, device=on)
        self._order = torch.zeros(1, dtype=torch.int64, device=on)  # of the element that the model sees next
        self._x = torch.zeros(batch, config.width, dtype=dtype, device=on)  # that element

        def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            if not is_compiled:
                return function
            return torch.compile(function, dynamic=False)

        self._hidden = compiled(self._forward)
        self._next = {True: compiled(self._next_global), False: compiled(self._next_patch)}
        self._steps: dict[bool, Callable[[], None]] = {}
        for is_global, first in ((True, 0), (False, self._num_globals)):
            if not is_global or self._num_globals:
                self._steps[is_global] = device.captured(
                    partial(self._step, is_global), before=partial(self._order.fill_, first)
                )

    @torch.no_grad()
    def draw_batch(self) -> None:
        self._order.zero_()
        zeros = torch.zeros_like(self._seeds)
        self._x.copy_(self._model.embed_condition(zeros, zeros == 0, zeros - 1))
        for order in range(self.num_steps):
            self._steps[order < self._num_globals]()

    def _step(self, is_global: bool) -> None:
        self._x.copy_(self._next[is_global](self._hidden(self._x, self._order), self._order))
        self._order += 1

    def _forward(self, x: Tensor, order: Tensor) -> Tensor:
        """The element (B, W) at `order` (1,) to its hidden state (B, W)."""
        rotary = self._rotary[order].expand(self.batch, -1, -1)
        visible = (self._places <= order)[None, None, None]  # (1, 1, 1, L)
        for layer, block in enumerate(self._model.blocks):
            x = block(x, rotary, self._attend(layer, order, visible))
        return self._model.norm(x)

    def _attend(self, layer: int, order: Tensor, visible: Tensor) -> Attend:
        keys, values = self.keys[layer], self.values[layer]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.index_copy_(2, order, key[:, :, None])
            values.index_copy_(2, order, value[:, :, None])
            return F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=visible)[:, :, 0]

        return attend

    def _next_global(self, hidden: Tensor, order: Tensor) -> Tensor:
        """The next element (B, W), whose code is drawn."""
        code = self._draw(self._model.global_logits(hidden), order)
        return self._model.embed_global(code, order.expand(self.batch))

    def _next_patch(self, hidden: Tensor, order: Tensor) -> Tensor:
        place = (order - self._num_globals).expand(self.batch)
        code = self._draw(self._model.code_logits(hidden, place), order)
        return self._model.embed_patch(code, place)

    def _draw(self, logits: Tensor, order: Tensor) -> Tensor:
        return draw(logits, uniforms(self._seeds, order.expand(self.batch)), DrawConfig())
