"""Whether it would pay to draw several tokens of an image in one step (parallel acceptance; Jacobi iteration), without
another training and with the very images that one token a step gives.

    python -m tests.benchmarks.lookahead --checkpoint runs/generator [--images 64] [--grid]

Every draw of an image has noise of its own, by its place in the sequence (Gumbel: the outcome is the maximum of logit
and noise), so that a sequence is the one fixed point of "draw each token from those before it". A step takes W tokens
at once, of which all but the first are guesses: each is drawn again from those before it, and those up to the first
that comes out another than guessed are right, the one after them too. What was drawn behind it are the next guesses.
How many a step brings is counted here by whole passes over the sequences, which costs nothing that matters; what a step
of W rows costs beside one row is measured with the steps that drawing takes (`ar/steps.py`). Their quotient is what an
implementation could gain at most, one image at a time.

Letters: B images, L elements of a sequence, W tokens of a step, V outcomes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.steps import CompiledSteps, PlainSteps, Steps, load_step

WIDTHS = (1, 2, 4, 8)
_SECONDS = 2.0
_ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a generator")
    parser.add_argument("--images", type=int, default=64, help="that are drawn")
    parser.add_argument("--grid", action="store_true", help="a patch at every place")
    options = parser.parse_args()
    model = load_generator(options.checkpoint).model.eval().requires_grad_(False)
    torch.set_num_threads(1)
    cost = step_costs(model)
    first = None
    print("\n| tokens a step | accepted | cost of a step | speed at most |\n|---|---|---|---|")
    for width in WIDTHS:
        sequences = Sequences(model, options.images, is_grid=options.grid)
        accepted = sequences.draw(width)
        first = sequences if first is None else first
        assert first.equal(sequences), "another width gave other images"
        print(f"| {width} | {accepted:.2f} | {cost[width]:.2f} | {accepted / cost[width]:.2f} |")
    return 0


@dataclass
class _Noise:
    """Gumbel's, by image and place in the sequence, (B, L, V)."""

    codes: Tensor
    positions: Tensor


class Sequences:
    """Sequences that are drawn from nothing. `codes`, `places` (B, L) int64 of elements, known up to `order` (B,)."""

    def __init__(self, model: Generator, count: int, *, is_grid: bool) -> None:
        self._model, self._is_grid = model, is_grid
        vocabulary = model.vocabulary
        self._num_globals, self._num_places = vocabulary.num_globals, vocabulary.num_patches
        length = vocabulary.max_length
        shape = (count, length)
        random = torch.Generator().manual_seed(0)
        self._noise = _Noise(
            _gumbel((*shape, max(vocabulary.patch_vocab, vocabulary.global_vocab)), random),
            _gumbel((*shape, self._num_places + 1), random),
        )
        labels = torch.arange(count) % max(1, model.config.num_classes)
        self._condition = model.embed_condition(
            labels, torch.ones(count, dtype=torch.bool), labels.new_full((count,), -1)
        )
        self.codes, self.places = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        self.order = torch.zeros(count, dtype=torch.int64)
        self.lengths = torch.zeros(count, dtype=torch.int64)  # once they have ended

    @torch.no_grad()
    def draw(self, width: int) -> float:
        """All of them to their ends; tokens and ends that a step brought, on average."""
        num_steps = num_drawn = 0
        while len(open_ := (self.lengths == 0).nonzero()[:, 0]):
            before = self.order[open_].clone()
            self._step(open_, width)
            num_steps += len(open_)
            num_drawn += int((self.order[open_] - before).sum())
        return num_drawn / num_steps

    def equal(self, other: Sequences) -> bool:
        known = torch.arange(self.codes.shape[1]) < self.lengths[:, None]
        same = (self.codes == other.codes) & (self.places == other.places)
        return bool((self.lengths == other.lengths).all() and (same | ~known).all())

    def _step(self, images: Tensor, width: int) -> None:
        """`_order` is at the last known element, whose successors are drawn."""
        hidden = self._hidden(images)
        start, last_order = self.order[images], self.codes.shape[1] - 1
        is_right = torch.ones(len(images), dtype=torch.bool)
        accepted, is_over = torch.zeros_like(start), torch.zeros_like(is_right)
        guessed = self.codes[images].clone(), self.places[images].clone()
        for j in range(width):
            order = (start + j).clamp(max=last_order)
            place, code, ends = self._next(images, hidden, order)
            counts = is_right & ~is_over
            accepted += counts
            is_over |= counts & ends
            self.lengths[images[counts & ends]] = order[counts & ends] + 1
            at = (order + 1).clamp(max=last_order)
            rows = torch.arange(len(images))
            agrees = (guessed[0][rows, at] == code) & (guessed[1][rows, at] == place)
            # The next row has seen what was guessed here: it is right where that is what was drawn.
            is_right = is_right & agrees & ~ends & (order + 1 <= last_order)
            writes = ~ends & (start + j + 1 <= last_order)
            self.codes[images[writes], at[writes]] = code[writes]
            self.places[images[writes], at[writes]] = place[writes]
        self.order[images] = start + accepted
        self._guess(images, hidden, start + width, accepted)

    def _next(self, images: Tensor, hidden: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What follows the elements at `order`: place, code and whether it is the end."""
        h = hidden[torch.arange(len(images)), order]
        is_global = order < self._num_globals
        last = torch.where(order > self._num_globals, self.places[images, order], -1)
        if self._is_grid:
            position = last + 1
        else:
            logits = self._model.position_logits(h, last)
            position = (logits + self._noise.positions[images, order]).argmax(1)
        place = position.clamp(max=self._num_places - 1)
        code = self._draw_code(self._model.code_logits(h, place), images, order)
        if self._num_globals:
            as_global = self._draw_code(self._model.global_logits(h), images, order)
            code, place = torch.where(is_global, as_global, code), torch.where(is_global, order, place)
        return place, code, (position == self._num_places) & ~is_global

    def _draw_code(self, logits: Tensor, images: Tensor, order: Tensor) -> Tensor:
        return (logits + self._noise.codes[images, order, : logits.shape[1]]).argmax(1)

    def _guess(self, images: Tensor, hidden: Tensor, first: Tensor, count: Tensor) -> None:
        """Elements that nobody has guessed yet: as the last row would have them."""
        last_order = self.codes.shape[1] - 1
        h = hidden[torch.arange(len(images)), (first - 1).clamp(max=last_order)]
        for j in range(int(count.max())):
            order = first + j
            writes = (j < count) & (order + 1 <= last_order) & (order >= self._num_globals)
            at, before = order[writes] + 1, order[writes]
            place = (self.places[images[writes], before] + 1).clamp(max=self._num_places - 1)
            logits = self._model.code_logits(h[writes], place)
            self.codes[images[writes], at] = self._draw_code(logits, images[writes], before)
            self.places[images[writes], at] = place

    def _hidden(self, images: Tensor) -> Tensor:
        """(B, L, W), each element having seen those before it."""
        model, codes, places = self._model, self.codes[images], self.places[images]
        count, length = codes.shape
        x = model.embed_patch(codes.clamp(max=model.vocabulary.patch_vocab - 1), places)
        if self._num_globals:
            slots = places.clamp(max=self._num_globals - 1)
            as_global = model.embed_global(codes.clamp(max=model.vocabulary.global_vocab - 1), slots)
            is_global = torch.arange(length)[:, None] <= self._num_globals
            x = torch.where(is_global, as_global, x)
        x[:, 0] = self._condition[images]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (each.unflatten(0, (count, length)).transpose(1, 2) for each in (query, key, value))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)

        spots = torch.arange(length).expand(count, -1)
        spots = torch.where(spots <= self._num_globals, spots, 1 + self._num_globals + places)
        x, rotary = x.flatten(0, 1), model.rotary[spots.flatten()]
        for block in model.blocks:
            x = block(x, rotary, attend)
        return model.norm(x).unflatten(0, (count, length))


def _gumbel(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return -torch.rand(shape, generator=random).clamp(min=1e-30).log().neg().log()


def step_costs(model: Generator) -> dict[int, float]:
    """Seconds of a step of W rows, over those of one row: medians of rounds in turn."""
    sides = {width: _Rows(model, width) for width in WIDTHS}
    times = np.array([[side.step_s() for side in sides.values()] for _ in range(_ROUNDS)])
    ratios = times / times[:, :1]
    return {width: statistics.median(ratios[:, place]) for place, width in enumerate(WIDTHS)}


class _Rows:
    """Steps of so many rows in the middle of a sequence."""

    def __init__(self, model: Generator, count: int) -> None:
        library = load_step()
        self._steps: Steps
        if library is None:
            self._steps = PlainSteps(model, num_rows=count, is_static=False, rotary=model.rotary)
        else:
            self._steps = CompiledSteps(model, library, num_rows=count)
        self._elements = torch.randn(count, model.config.width)
        self._order = torch.arange(count) + model.vocabulary.max_length // 2
        self._places = torch.arange(count)

    def step_s(self) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < _SECONDS:
            hidden = self._steps.hidden(self._elements, self._order, self._order)
            self._steps.position_logits(hidden)
            self._steps.code_logits(hidden, self._places)
            done += 1
        return (time.perf_counter() - start) / done


if __name__ == "__main__":
    raise SystemExit(main())
