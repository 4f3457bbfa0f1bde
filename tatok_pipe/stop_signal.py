"""SIGTERM and Ctrl-C as a request: the first one asks the run to come to an end, the second one ends it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While it is entered (from the main thread) a signal is noted instead of raised. The second one raises
    KeyboardInterrupt, as Ctrl-C does without it."""

    def __init__(self) -> None:
        self._requested_s: float | None = None
        self._before: dict[signal.Signals, object] = {}

    def request(self) -> None:
        """What a signal does."""
        self._requested_s = self._requested_s or time.monotonic()

    @property
    def is_requested(self) -> bool:
        return self._requested_s is not None

    @property
    def seconds(self) -> float:
        """Since the request; 0 without one."""
        return time.monotonic() - self._requested_s if self._requested_s is not None else 0.0

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.request()
