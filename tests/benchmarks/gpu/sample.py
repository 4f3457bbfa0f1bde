"""Drawing images on a GPU: the sampler with images of the tokens they need, beside a loop of fixed length.

Codes are drawn by a model with random weights; which places have a patch is asked for, as real images have them.
Rates are those of the steady state, when every slot has ended some images.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, Place
from tatok_pipe.ar.sampler import Sampler
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.fixed_loop import FixedLoop
from tests.benchmarks.gpu.inputs import requested_patches

_SPEED_UP = 8.7
_WARM_UP = 3  # images a slot, before anything is timed
_SECONDS = 8  # times those of other timings: a loop of fixed length takes some seconds for a batch
_BUSY_STEPS = 32  # that the profiler looks at: a step has some hundred kernels
_NUM_SHAPES = 1024  # different images that are asked for
_COMPILE_S = 150.0  # that compiling both sides may take


class Steady:
    """A sampler with more requests than it can ever fulfil."""

    def __init__(
        self,
        model: Generator,
        patches: list[np.ndarray],
        *,
        num_slots: int,
        dtype: torch.dtype,
        is_compiled: bool,
        seconds: float,
    ) -> None:
        self.sampler = Sampler(model, SamplingConfig(), num_slots=num_slots, dtype=dtype, compile=is_compiled)
        self._images = self.sampler.sample(self._requests(patches, model.config.num_classes))
        self._mean_elements = 1 + statistics.mean(num_tokens(model, each) for each in patches)
        self._seconds = seconds
        self.step_s = float("nan")  # in the last timing
        for _ in range(_WARM_UP * num_slots):
            next(self._images)

    @staticmethod
    def _requests(patches: list[np.ndarray], num_classes: int) -> Iterator[ImageRequest]:
        for number in itertools.count():
            shape = patches[number % len(patches)]
            yield ImageRequest(number, seed=number, label=number % num_classes, patches=shape)

    def run_steps(self, count: int) -> None:
        """At least so many."""
        stop = self.sampler.statistics.num_steps + count
        while self.sampler.statistics.num_steps < stop:
            next(self._images)

    def images_per_s(self) -> float:
        """By the elements that images took: whole images would depend on which ones end within the time."""
        done = self.sampler.statistics
        elements, steps, start = done.num_elements, done.num_steps, time.perf_counter()
        while time.perf_counter() - start < self._seconds:
            next(self._images)
        spent = time.perf_counter() - start
        self.step_s = spent / (done.num_steps - steps)
        return (done.num_elements - elements) / spent / self._mean_elements


def num_tokens(model: Generator, patches: np.ndarray) -> int:
    return model.vocabulary.num_globals + int((patches != Place.ABSENT).sum())


def bytes_per_step(model: Generator, *, num_rows: int, dtype: torch.dtype) -> int:
    """That a step has to read at least: the weights of blocks and heads, and the whole cache, whose size is fixed."""
    parts = (model.blocks, model.global_head, model.position_head, model.code_head)
    weights = sum(p.numel() for part in parts for p in part.parameters() if p.ndim == 2)
    config = model.config
    cache = 2 * config.depth * num_rows * model.vocabulary.max_length * config.width
    return (weights + cache) * dtype.itemsize


def run(bench: Bench) -> None:
    sizes, device = bench.sizes, bench.device
    torch.manual_seed(0)
    with device.device:
        model = Generator(sizes.generator, sizes.sample_vocabulary).eval()
    patches = requested_patches(_NUM_SHAPES, sizes.sample_vocabulary, mean_tokens=sizes.sample_tokens)
    tokens = statistics.mean(num_tokens(model, each) for each in patches)
    fixed = sizes.sample_vocabulary.max_length - 1
    bench.row(
        "model", weights=model.num_parameters, tokens_an_image=tokens, tokens_of_fixed_length=fixed,
        ideal=fixed / tokens,
    )  # fmt: skip
    for num_slots in sizes.slots:
        compare(bench, model, patches, num_slots=num_slots, is_compiled=False)
    for number, num_slots in enumerate(reversed(sizes.slots)):
        bench.later(
            f"sampler and loop compiled, {num_slots} slots",
            partial(compare, bench, model, patches, num_slots=num_slots, is_compiled=True),
            needs_s=_COMPILE_S,
            rank=2 * number,  # most slots first: compiled is how the sampler runs on a GPU
        )


def compare(
    bench: Bench, model: Generator, patches: list[np.ndarray], *, num_slots: int, is_compiled: bool
) -> None:
    """Both sides as CUDA graphs; compiled as well, which is the sampler's default on GPUs."""
    device, sizes = bench.device, bench.sizes
    dtype = torch.bfloat16 if device.is_gpu else torch.float32
    how = "compiled" if is_compiled else "graph"
    device.release()
    device.begin_peak()
    start = time.perf_counter()
    ours = Steady(
        model, patches, num_slots=num_slots, dtype=dtype, is_compiled=is_compiled, seconds=_SECONDS * sizes.seconds
    )  # fmt: skip
    ready_s = time.perf_counter() - start
    peak = device.peak_gib()
    start = time.perf_counter()
    loop = FixedLoop(model, batch=num_slots, device=device, dtype=dtype, is_compiled=is_compiled)
    other = bench.side(num_slots, loop.draw_batch)
    loop_ready_s = time.perf_counter() - start
    figure = bench.compare(
        f"sample/fixed/{how}/{num_slots}", f"images drawn, {num_slots} slots, {how} / a loop of fixed length",
        ours.images_per_s, other, unit="images/s", target=_SPEED_UP, is_slow=True,
    )  # fmt: skip
    loop_step_s = num_slots / figure.other / loop.num_steps
    needed = bytes_per_step(model, num_rows=num_slots, dtype=dtype)
    bench.row(
        f"{num_slots} slots, {how}", step_ms=1e3 * ours.step_s, loop_step_ms=1e3 * loop_step_s,
        occupancy=ours.sampler.statistics.occupancy, ready_s=ready_s, loop_ready_s=loop_ready_s, peak_gib=peak,
    )  # fmt: skip
    for key, name, step_s in (("ours", "a step", ours.step_s), ("fixed", "a step of the loop", loop_step_s)):
        bench.against(
            f"sample/bandwidth/{key}/{how}/{num_slots}", f"memory read in {name}, {num_slots} slots, {how} / a copy",
            [needed / step_s / 1e9], bench.bandwidth_bytes_per_s / 1e9, unit="GB/s",
        )  # fmt: skip
    bench.busy(f"sampler, {num_slots} slots, {how}", partial(ours.run_steps, _BUSY_STEPS))
