"""How many pixels may be in decoding at once in a process: its memory should not grow with its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """A share of `limit` pixels for each image in work; one that is larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free, and keep them for the block."""
        share = min(num_pixels, self._limit)
        with self._freed:
            self._freed.wait_for(lambda: self._used + share <= self._limit)
            self._used += share
        try:
            yield
        finally:
            with self._freed:
                self._used -= share
                self._freed.notify_all()
