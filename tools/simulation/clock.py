"""Virtual time: what happens next happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Calls that are due at some second; those of one instant in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._num_events = 0

    def at(self, time_s: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have `call(*arguments)` made at `time_s`, which is not before now."""
        self._num_events += 1
        heapq.heappush(self._events, (time_s, self._num_events, call, arguments))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Make the calls until `is_over`. Raises RuntimeError where nothing is left to happen before."""
        while not is_over():
            if not self._events:
                raise RuntimeError(f"nothing happens any more after {self.now_s} s, and it is not over")
            self.now_s, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
