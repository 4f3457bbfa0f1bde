"""The sampler: images as tokens from a generator, many at a time, each as soon as a slot is free.

A *slot* is a row of the batch with room for one sequence's keys and values. Every step takes one element of every
slot through the model and draws the next one; the slot of an image that has ended begins with another one in the very
next step, so that images of different lengths leave no slot idle. All state is on the device, and a step is the same
program whatever the slots are at: on a GPU it is compiled and captured once, and runs ahead of the host.

What an image becomes depends on its request alone, not on the number of slots, on what is in the others, or on the
order: draws are a function of the image's seed and the place in its sequence, and on CPUs so is, bit for bit, what
the model computes (`steps.py`). On GPUs it is for a given number of slots: for another one, other
kernels may round differently.

Letters: B slots, R rows of the model (B, or 2·B with guidance), C requests on the device, K globals, N places, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tatok_pipe.ar.draws import draw
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.request_table import RequestTable
from tatok_pipe.ar.requests import ImageRequest, ImageTokens
from tatok_pipe.ar.steps import CompiledSteps, PlainSteps, Steps, load_step

# Requests that wait on the device for each slot: a long image in one of them must not hold up the others.
_REQUESTS_PER_SLOT = 4
# How often the host looks for finished images: it has to wait for a GPU to do so.
_STEPS_PER_LOOK = {"cpu": 1, "cuda": 16}
# Images at once, where nobody says how many: what keeps the device busy.
DEFAULT_SLOTS = {"cpu": 32, "cuda": 256}

Slots = Tensor | slice  # some of the slots, by index, or all
_ALL = slice(None)


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
        steps: str | None = None,
    ) -> None:
        """On the generator's device, which keeps its weights: the sampler has its own in `dtype`.

        `compile`: make kernels of a step with torch.compile, which takes a minute at first; None: on GPUs, where a step
        is a CUDA graph in any case. Compiled so, and on GPUs, the same images come for a given number of slots only.
        `steps`: "c", or "torch" for the model's own modules; None: C for float32 on CPUs, where there is a compiler.
        Both give the same images but for rounding, which another code follows from once in many thousands.
        Raises ValueError where `num_slots` is not at least 1, the generator was trained without a condition to guide
        by, or steps cannot be computed in C.
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
        vocabulary = generator.vocabulary
        self._num_globals, self._num_places = vocabulary.num_globals, vocabulary.num_patches
        self._steps = self._make_steps(steps, generator.rotary)
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
        # What a device keeps to itself: they stay so where a step is always the same program.
        self._may_be_idle = self._has_ended = True
        self._run: Callable[[], None] = torch.compile(self._step, dynamic=False) if compile else self._step
        if device.type == "cuda":
            self._run = _captured(self._run)

    def _make_steps(self, steps: str | None, rotary: Tensor) -> Steps:
        """`rotary` as it was before it was rounded with the weights."""
        model, num_rows = self._model, (2 if self.config.is_guided else 1) * self.num_slots
        is_exact = not self._is_static and model.patch_codes.weight.dtype == torch.float32
        library = load_step() if is_exact and steps != "torch" else None
        if library is None:
            if steps == "c":
                raise ValueError(
                    "steps=c: expected float32 on a CPU without torch.compile, and a C compiler; give steps=torch"
                )
            return PlainSteps(model, num_rows=num_rows, is_static=self._is_static, rotary=rotary)
        compiled = CompiledSteps(model, library, num_rows=num_rows)
        for laid_out_anew in ("blocks", "global_head", "position_head", "code_head"):
            delattr(model, laid_out_anew)
        return compiled

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
            if self._has_ended and (images := self._requests.take_finished()):
                num_open -= len(images)
                self.statistics.num_images += len(images)
                self.statistics.num_elements = int(self._num_elements)
                yield from images

    def _forget(self) -> None:
        self._requests.clear()
        self._request.fill_(self._requests.nobody)
        self._may_be_idle = True
        for state in (self._order, self._code, self._place, self._num_patches):
            state.zero_()

    def _step(self) -> None:
        """One element of every slot."""
        table = self._requests
        if self._may_be_idle:
            self._request.copy_(table.hand_out(self._request))
        is_active = self._request != table.nobody
        is_global = self._order < self._num_globals  # what comes next
        kinds = self._kinds(is_global)
        ends, place, code = self._draw(self._hidden(), is_global, *kinds)
        ends = ends & is_active
        self._look(is_active, ends)
        goes_on = is_active & ~ends
        self._store(place, code, ends, is_global, goes_on & ~is_global, *kinds)
        self._num_elements += is_active.sum()
        self._code.copy_(code)
        self._place.copy_(place)
        self._order.copy_((self._order + 1) * goes_on)
        if self._has_ended:
            self._request.copy_(torch.where(ends, table.nobody, self._request))

    def _look(self, is_active: Tensor, ends: Tensor) -> None:
        """On the host, where that does not wait for a device: what need not be done in this step or the next."""
        if not self._is_static:
            self._has_ended = bool(ends.any())
            self._may_be_idle = self._has_ended or not bool(is_active.all())

    def _kinds(self, is_global: Tensor) -> tuple[Slots | None, Slots | None]:
        """Slots whose next token is computed as a patch, and as a global."""
        if self._is_static:
            return _ALL, _ALL if self._num_globals else None
        num_globals = int(is_global.sum())
        if num_globals in (0, self.num_slots):
            return (None, _ALL) if num_globals else (_ALL, None)
        return (~is_global).nonzero()[:, 0], is_global.nonzero()[:, 0]

    def _store(
        self,
        place: Tensor,
        code: Tensor,
        ends: Tensor,
        is_global: Tensor,
        is_patch: Tensor,
        for_patch: Slots | None,
        for_global: Slots | None,
    ) -> None:
        """What was drawn, (B,) each, with the requests."""
        table, of, code = self._requests, self._request, code.int()
        if for_global is not None:
            table.drawn_globals[of, torch.where(is_global, self._order, self._num_globals)] = code
        if for_patch is not None:
            table.drawn_patches[of, torch.where(is_patch, place, self._num_places)] = code
        if self._has_ended:
            table.is_finished[of] = ends
        if self.config.max_patches is not None:
            self._num_patches.copy_((self._num_patches + is_patch) * ~ends)

    def _draw(
        self, hidden: Tensor, is_global: Tensor, for_patch: Slots | None, for_global: Slots | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each image ends, else index or position of the next global or patch, and its code, (B,) each."""
        if for_global is None:
            assert for_patch is not None
            return self._draw_patch(hidden, for_patch)
        if for_patch is None:
            return torch.zeros_like(is_global), self._order, self._draw_global(hidden, for_global)
        if self._is_static:
            ends, place, code = self._draw_patch(hidden, for_patch)
            code = torch.where(is_global, self._draw_global(hidden, for_global), code)
            return ends & ~is_global, torch.where(is_global, self._order, place), code
        ends, place, code = torch.zeros_like(is_global), self._order.clone(), torch.zeros_like(self._order)
        ends[for_patch], place[for_patch], code[for_patch] = self._draw_patch(hidden, for_patch)
        code[for_global] = self._draw_global(hidden, for_global)
        return ends, place, code

    def _hidden(self) -> Tensor:
        """The normalised hidden state of every slot's element, (R, W)."""
        table, order = self._requests, self._order
        state = order, self._code, self._place
        elements = self._steps.embed(*state, table.conditions, self._request)
        if self.config.is_guided:
            without = self._steps.embed(*state, table.unconditions, self._request)
            elements = torch.cat([elements, without])
        spots = torch.where(order <= self._num_globals, order, 1 + self._num_globals + self._place)
        return self._steps.hidden(elements, self._per_row(order), self._per_row(spots))

    def _draw_patch(self, hidden: Tensor, at: Slots) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the images in these slots end, else position and code of their next patches."""
        table, of, order = self._requests, _some(self._request, at), _some(self._order, at)
        hidden = self._rows(hidden, at)
        # Position of the last patch; -1 before the first.
        last = torch.where(order > self._num_globals, _some(self._place, at), -1)
        settled = self._num_globals + last + 1
        logits = self._guided(self._steps.position_logits(hidden), at, settled, self.config.positions)
        logits = logits.masked_fill(self._barred(last, at), float("-inf"))
        position = draw(logits, table.uniforms[of, 2 * order], self.config.positions)
        place = position.clamp(max=self._num_places - 1)
        logits = self._steps.code_logits(hidden, self._per_row(place))
        code = self._draw_code(logits, at, settled, given=table.patches[of, place])
        return position == self._num_places, place, code

    def _draw_global(self, hidden: Tensor, at: Slots) -> Tensor:
        """Codes of the next globals in these slots."""
        order = _some(self._order, at)
        index = order.clamp(max=self._num_globals - 1)
        given = self._requests.global_codes[_some(self._request, at), index]
        logits = self._steps.global_logits(self._rows(hidden, at))
        return self._draw_code(logits, at, order, given=given)

    def _draw_code(self, logits: Tensor, at: Slots, settled: Tensor, *, given: Tensor) -> Tensor:
        logits = self._guided(logits, at, settled, self.config.codes)
        numbers = self._requests.uniforms[_some(self._request, at), 2 * _some(self._order, at) + 1]
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
        table, of = self._requests, _some(self._request, at)
        required = table.next_required[of, last + 1][:, None]  # N where none is
        barred = (self._outcomes <= last[:, None]) | (self._outcomes > required) | table.is_absent[of]
        if self.config.max_patches is None:
            return barred
        room = self.config.max_patches - _some(self._num_patches, at) - table.num_required[of, last + 1]
        return barred | ((room <= 0)[:, None] & (self._outcomes != required))

    def _rows(self, hidden: Tensor, at: Slots) -> Tensor:
        """Of (R, W) the rows of these slots."""
        if isinstance(at, slice) or not self.config.is_guided:
            return _some(hidden, at)
        conditional, unconditional = hidden.chunk(2)
        return torch.cat([conditional[at], unconditional[at]])

    def _per_row(self, values: Tensor) -> Tensor:
        """Of slots to what their rows have."""
        return values.repeat(2) if self.config.is_guided else values


def _some(values: Tensor, at: Slots) -> Tensor:
    return values if isinstance(at, slice) else values[at]


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
