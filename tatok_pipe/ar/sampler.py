"""The sampler: images as tokens from a generator, many at a time, each as soon as a slot is free.

A *slot* is a row of the batch with room for one sequence's keys and values. Every step takes one element of every
slot through the model and draws the next one; the slot of an image that has ended begins with another one in the very
next step, so that images of different lengths leave no slot idle. All state is on the device, and a step is the same
program whatever the slots are at: on a GPU it is compiled and captured once, and runs ahead of the host.

What an image becomes depends on its request alone, not on the number of slots, on what is in the others, or on the
order: draws are a function of the image's seed and the place in its sequence, and on CPUs so is, bit for bit, what
the model computes (`nn/prepacked.py`, `kv_cache.py`). On GPUs it is for a given number of slots: for another one, other
kernels may round differently.

Letters: B slots, R rows of the model (B, or 2·B with guidance), C requests on the device, K globals, N places, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tatok_pipe.ar.draws import draw, uniforms
from tatok_pipe.ar.kv_cache import KeyValueCache
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.request_table import RequestTable
from tatok_pipe.ar.requests import ImageRequest, ImageTokens
from tatok_pipe.nn.prepacked import prepack

# Requests that wait on the device for each slot: a long image in one of them must not hold up the others.
_REQUESTS_PER_SLOT = 4
# How often the host looks for finished images: it has to wait for a GPU to do so.
_STEPS_PER_LOOK = {"cpu": 1, "cuda": 16}
# Images at once, where nobody says how many: what keeps the device busy.
DEFAULT_SLOTS = {"cpu": 32, "cuda": 256}

Slots = Tensor | slice  # some of the slots, by index, or all


@dataclass
class SamplerStatistics:
    """What a sampler has done so far."""

    num_slots: int
    num_steps: int = 0
    num_elements: int = 0  # of images: conditions and tokens; a step does at most one a slot
    num_images: int = 0

    @property
    def occupancy(self) -> float:
        """The share of the slots that were at an image, over all steps."""
        return self.num_elements / max(1, self.num_slots * self.num_steps)


class Sampler:
    """Draws images from a generator. Not thread-safe; one `sample` at a time."""

    def __init__(
        self,
        generator: Generator,
        config: SamplingConfig,
        *,
        num_slots: int,
        dtype: torch.dtype = torch.float32,
        compile: bool | None = None,
    ) -> None:
        """On the generator's device, which keeps its weights: the sampler has its own in `dtype`.

        `compile`: make kernels of a step with torch.compile, which takes a minute at first; None: on GPUs, where a step
        is a CUDA graph in any case. Compiled, and on GPUs, the same images come for a given number of slots only.
        Raises ValueError where `num_slots` is not at least 1, or the generator was trained without a condition to guide
        by.
        """
        if num_slots < 1:
            raise ValueError(f"num_slots={num_slots}: expected at least 1")
        if config.is_guided and generator.config.condition == "none":
            raise ValueError("guidance: expected 1, the generator was trained without a condition")
        self.config = config
        self.num_slots = num_slots
        self.statistics = SamplerStatistics(num_slots)
        self._model = copy.deepcopy(generator).eval().requires_grad_(False).to(dtype)
        self._device = device = self._model.rotary.device
        compile = device.type == "cuda" if compile is None else compile
        # One program for every step, which runs before the host knows what comes next; else each head sees only the
        # slots that need it.
        self._is_static = device.type != "cpu" or compile
        if not self._is_static:
            prepack(self._model)
        vocabulary = generator.vocabulary
        self._num_globals, self._num_places = vocabulary.num_globals, vocabulary.num_patches
        # The model's buffer was rounded with the weights.
        self._rotary = generator.rotary.to(device)
        num_rows = (2 if config.is_guided else 1) * num_slots
        self._cache = KeyValueCache(
            num_layers=generator.config.depth,
            num_rows=num_rows,
            num_heads=generator.config.heads,
            length=vocabulary.max_length,
            head_dim=generator.config.width // generator.config.heads,
            device=device,
            dtype=dtype,
            is_static=self._is_static,
        )
        self._requests = RequestTable(
            self._model, capacity=_REQUESTS_PER_SLOT * num_slots, max_patches=config.max_patches
        )
        self._outcomes = torch.arange(self._num_places + 1, device=device)  # of a position; N is the end
        # Of each slot: the request it works on, and the element that the model sees next.
        self._request = torch.full((num_slots,), self._requests.nobody, device=device)
        self._order = torch.zeros_like(self._request)  # in its sequence; 0 is the condition
        self._code = torch.zeros_like(self._request)
        self._place = torch.zeros_like(self._request)  # index of a global, position of a patch
        self._num_patches = torch.zeros_like(self._request)  # of the image so far
        self._num_elements = torch.zeros((), dtype=torch.int64, device=device)
        self._run: Callable[[], None] = torch.compile(self._step, dynamic=False) if compile else self._step
        if device.type == "cuda":
            self._run = _captured(self._run)

    @torch.no_grad()
    def sample(self, requests: Iterable[ImageRequest]) -> Iterator[ImageTokens]:
        """The images in the order in which they end. Requests are taken as there is room for them; those of an earlier
        call that was not read to its end are forgotten.

        Raises ValueError for a request that the generator cannot fulfil; images before it that have not ended are
        lost then.
        """
        source, num_open = iter(requests), 0
        num_looks = _STEPS_PER_LOOK[self._device.type]
        self._forget()
        while True:
            # Many at once, while there is still one for every slot: a write costs the same for one and for many.
            if num_open < 2 * self.num_slots:
                num_open += self._requests.fill(source)
            if not num_open:
                return
            for _ in range(num_looks):
                self._run()
            self.statistics.num_steps += num_looks
            images = self._requests.take_finished()
            if images:
                num_open -= len(images)
                self.statistics.num_images += len(images)
                self.statistics.num_elements = int(self._num_elements)
                yield from images

    def _forget(self) -> None:
        self._requests.clear()
        self._request.fill_(self._requests.nobody)
        for state in (self._order, self._code, self._place, self._num_patches):
            state.zero_()

    def _step(self) -> None:
        """One element of every slot."""
        self._request.copy_(self._requests.hand_out(self._request))
        table, of, order = self._requests, self._request, self._order
        is_active = of != table.nobody
        is_global = order < self._num_globals  # what comes next
        ends, place, code = self._draw(self._hidden(), is_global)
        ends &= is_active
        is_patch = is_active & ~is_global & ~ends
        table.drawn_globals[of, torch.where(is_global, order, self._num_globals)] = code.int()
        table.drawn_patches[of, torch.where(is_patch, place, self._num_places)] = code.int()
        table.is_finished[of] = ends
        self._num_elements += is_active.sum()
        self._num_patches.copy_((self._num_patches + is_patch) * ~ends)
        self._order.copy_((order + 1) * (is_active & ~ends))
        self._code.copy_(code)
        self._place.copy_(place)
        self._request.copy_(torch.where(ends, table.nobody, of))

    def _draw(self, hidden: Tensor, is_global: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each image ends, else index or position of the next global or patch, and its code, (B,) each."""
        order = self._order
        if self._is_static:
            ends, place, code = self._draw_patch(hidden, slice(None))
            if self._num_globals:
                code = torch.where(is_global, self._draw_global(hidden, slice(None)), code)
                place = torch.where(is_global, order, place)
            return ends & ~is_global, place, code
        ends, place, code = torch.zeros_like(is_global), order.clone(), torch.zeros_like(order)
        for_patch, for_global = ((is_global == want).nonzero()[:, 0] for want in (False, True))
        if len(for_patch):
            ends[for_patch], place[for_patch], code[for_patch] = self._draw_patch(hidden, for_patch)
        if len(for_global):
            code[for_global] = self._draw_global(hidden, for_global)
        return ends, place, code

    def _hidden(self) -> Tensor:
        """The normalised hidden state of every slot's element, (R, W)."""
        model, order, vocabulary = self._model, self._order, self._model.vocabulary
        # One of them is meant, and all are embedded: their codes and places must exist for all.
        x = model.embed_patch(
            self._code.clamp(max=vocabulary.patch_vocab - 1),
            self._place.clamp(max=vocabulary.num_patches - 1),
        )
        if self._num_globals:
            as_global = model.embed_global(
                self._code.clamp(max=vocabulary.global_vocab - 1),
                self._place.clamp(max=self._num_globals - 1),
            )
            x = torch.where((order <= self._num_globals)[:, None], as_global, x)
        begins = (order == 0)[:, None]
        table = self._requests
        rows = [torch.where(begins, table.conditions[self._request], x)]
        if self.config.is_guided:
            rows.append(torch.where(begins, table.unconditions[self._request], x))
        x, order = torch.cat(rows), self._per_row(order)  # (R, W), (R,)
        rotary = self._rotary[order]
        for block, attend in zip(model.blocks, self._cache.attends(order), strict=True):
            x = block(x, rotary, attend)
        return model.norm(x)

    def _draw_patch(self, hidden: Tensor, at: Slots) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the images in these slots end, else position and code of their next patches."""
        table, of, order, hidden = self._requests, self._request[at], self._order[at], self._rows(hidden, at)
        last = torch.where(
            order > self._num_globals, self._place[at], -1
        )  # position; -1 before the first patch
        settled = self._num_globals + last + 1
        logits = self._model.position_logits(hidden, self._per_row(last))
        logits = self._guided(logits, at, settled, self.config.positions)
        # After guidance, which makes no number of the difference of two infinite ones.
        logits = logits.masked_fill(self._barred(last, at), float("-inf"))
        position = draw(logits, uniforms(table.seeds[of], 2 * order), self.config.positions)
        place = position.clamp(max=self._num_places - 1)
        logits = self._model.code_logits(hidden, self._per_row(place))
        code = self._draw_code(logits, at, settled, given=table.patches[of, place])
        return position == self._num_places, place, code

    def _draw_global(self, hidden: Tensor, at: Slots) -> Tensor:
        """Codes of the next globals in these slots."""
        order = self._order[at]
        given = self._requests.global_codes[self._request[at], order.clamp(max=self._num_globals - 1)]
        logits = self._model.global_logits(self._rows(hidden, at))
        return self._draw_code(logits, at, order, given=given)

    def _draw_code(self, logits: Tensor, at: Slots, settled: Tensor, *, given: Tensor) -> Tensor:
        logits = self._guided(logits, at, settled, self.config.codes)
        numbers = uniforms(self._requests.seeds[self._request[at]], 2 * self._order[at] + 1)
        return torch.where(given >= 0, given, draw(logits, numbers, self.config.codes))

    def _guided(self, logits: Tensor, at: Slots, settled: Tensor, config: DrawConfig) -> Tensor:
        """Logits of the rows of these slots to float32 logits of the slots. `settled` is how many of their K + N
        globals and places are."""
        logits = logits.float()
        if not self.config.is_guided:
            return logits
        conditional, unconditional = logits.chunk(2)
        if config.guidance == 1:
            return conditional
        strength: Tensor | float = config.guidance
        if self.config.guidance_schedule == "cosine":
            share = settled / (self._num_globals + self._num_places)
            strength = 1 + (config.guidance - 1) * (1 - torch.cos(torch.pi * share))[:, None] / 2
        return unconditional + strength * (conditional - unconditional)

    def _barred(self, last: Tensor, at: Slots) -> Tensor:
        """Positions that cannot come next, (…, N + 1): those up to the last one, beyond one that must be there, or
        ruled out; and where there is no room for more, all but those that must be there."""
        table, of = self._requests, self._request[at]
        required = table.next_required[of, last + 1][:, None]  # N where none is
        barred = (self._outcomes <= last[:, None]) | (self._outcomes > required) | table.is_absent[of]
        if self.config.max_patches is None:
            return barred
        room = self.config.max_patches - self._num_patches[at] - table.num_required[of, last + 1]
        return barred | ((room <= 0)[:, None] & (self._outcomes != required))

    def _rows(self, hidden: Tensor, at: Slots) -> Tensor:
        """Of (R, W) the rows of these slots."""
        if not self.config.is_guided:
            return hidden[at]
        conditional, unconditional = hidden.chunk(2)
        return torch.cat([conditional[at], unconditional[at]])

    def _per_row(self, values: Tensor) -> Tensor:
        """Of slots to what their rows have."""
        return values.repeat(2) if self.config.is_guided else values


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph. It is run some times before: nothing may have been asked for yet."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        step()
    return graph.replay
