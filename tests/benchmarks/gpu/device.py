"""The device that is measured: its clocks and memory, what it can do at best, and how busy a piece of work keeps it.

A GPU works behind the host: a wall time here ends when the device is done. CUDA events stand in the device's own queue;
what they are apart includes the gaps in which it waited for the host, which is what `busy` is about.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch._dynamo.utils
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.measure import timed

_WARM_UPS = 3  # before a capture
_CEILING_REPEATS = 5
_MAX_PROGRAMS = 64  # of one function; torch's own limit counts those of all blocks of all models together


@dataclass(frozen=True)
class Timing:
    wall_s: float
    device_s: float  # between two events around it; the wall time on a CPU


@dataclass(frozen=True)
class Busy:
    """How a piece of work uses the device. Shares are of its wall time; None where the profiler saw nothing."""

    wall_s: float
    between_events: float  # from its first kernel to its last
    busy: float | None  # with a kernel or a copy running; what is missing is waiting for the host
    copies: float | None  # between host and device

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Device:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_gpu = device.type == "cuda"
        torch._dynamo.config.recompile_limit = _MAX_PROGRAMS

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "CPU"

    @property
    def memory_gib(self) -> float | None:
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30 if self.is_gpu else None

    @property
    def num_programs(self) -> int:
        """That torch.compile has made so far in this process."""
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def release(self) -> None:
        """The memory of what nobody refers to any more, and all compiled programs."""
        torch._dynamo.reset()
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def begin_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """The most that tensors took since `begin_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.is_gpu else None

    def timing(self, function: Callable[[], object]) -> Timing:
        self.synchronize()
        watch, start = Stopwatch(self), time.perf_counter()
        function()
        watch.mark("all")
        self.synchronize()
        return Timing(time.perf_counter() - start, watch.seconds()["all"])

    def side(self, amount: float, function: Callable[[], object], *, seconds: float) -> Callable[[], float]:
        """`function`, which does `amount` of something, as a side of a comparison: warmed up, and called so often that
        a timing takes about `seconds`."""
        function()
        calls = max(1, round(seconds / self.timing(function).wall_s))

        def run() -> None:
            for _ in range(calls):
                function()
            self.synchronize()

        return timed(amount * calls, run)

    @torch.no_grad()
    def captured(self, step: Callable[[], None], *, before: Callable[[], object]) -> Callable[[], None]:
        """`step` as a CUDA graph; itself on a CPU. It is run some times first, on both, each time after `before`."""
        if not self.is_gpu:
            _warm_up(step, before)
            return step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _warm_up(step, before)
        torch.cuda.current_stream().wait_stream(stream)
        before()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def busy(self, function: Callable[[], object]) -> Busy:
        """`function` is called three times: to warm up, on the clock, and under the profiler, which slows the host but
        no kernel. On a CPU the profiler's spans are those of operators."""
        function()
        timing = self.timing(function)
        activity = ProfilerActivity.CUDA if self.is_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            function()
            self.synchronize()
        spans, copies = [], []
        for event in profiler.events() or ():
            if event.device_type.name == activity.name and not event.is_user_annotation:
                span = (event.time_range.start, event.time_range.end)
                spans.append(span)
                if "HtoD" in event.name or "DtoH" in event.name:
                    copies.append(span)
        wall_us = 1e6 * timing.wall_s
        return Busy(
            timing.wall_s,
            timing.device_s / timing.wall_s,
            covered(spans) / wall_us if spans else None,
            covered(copies) / wall_us if spans else None,
        )


class Stopwatch:
    """Splits work on a device into named parts, by events on a GPU and by the host's clock on a CPU."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, name: str) -> None:
        """What came since the last mark is part of `name`."""
        self._marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Of each part, summed up; waits for the device."""
        self._device.synchronize()
        found: dict[str, float] = {}
        for (_, start), (name, stop) in zip(self._marks, self._marks[1:], strict=False):
            spent = start.elapsed_time(stop) / 1e3 if self._device.is_gpu else stop - start
            found[name] = found.get(name, 0.0) + spent
        return found

    def shares(self) -> dict[str, float]:
        seconds = self.seconds()
        total = sum(seconds.values())
        return {name: spent / total for name, spent in seconds.items()}

    def _now(self) -> Any:
        if not self._device.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _warm_up(step: Callable[[], None], before: Callable[[], object]) -> None:
    for _ in range(_WARM_UPS):
        before()
        step()


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals: what runs side by side counts once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def matmul_flops_per_s(device: Device, side: int, *, seconds: float) -> float:
    """The best of some timings of a bf16 product of random numbers; of zeros it would be faster than of any model."""
    left, right = (torch.randn(side, side, device=device.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    run = device.side(2 * side**3, lambda: torch.mm(left, right, out=out), seconds=seconds)
    return max(run() for _ in range(_CEILING_REPEATS))


def copy_bytes_per_s(device: Device, num_bytes: int, *, seconds: float) -> float:
    """Of a copy within the device's memory, read and written bytes together; the best of some timings."""
    source = torch.ones(num_bytes, device=device.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    run = device.side(2 * num_bytes, lambda: target.copy_(source), seconds=seconds)
    return max(run() for _ in range(_CEILING_REPEATS))
