"""SIGTERM, SIGHUP and Ctrl-C as a request: the first one asks the run to come to an end, the second one ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from tatok_pipe.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = "interrupted; run the same command again to go on"
received = threading.Event()  # set by every signal that asks to stop, in whatever way it is handled


class Interruption(KeyboardInterrupt):
    """What a signal raises. Had a KeyboardInterrupt itself gone through an `exec` of a text, as imports have them,
    `python -m` would end the process by SIGINT at last, whoever caught it and whatever the exit code."""


def leave_on_signals() -> None:
    """While a command is imported, before anything is begun: one line, and the exit code of an interruption."""
    _handle(_leave)


def raise_on_signals() -> None:
    """A signal raises a KeyboardInterrupt, as Ctrl-C does, from here to the end of the process."""
    _handle(_raise)


def ignore_signals() -> None:
    """For what is left to do once the exit code is known: a signal would change nothing but that code. A handler would
    be gone while Python frees what modules hold."""
    _handle(signal.SIG_IGN)


class StopSignal:
    """While it is entered a signal is noted instead of raised. The second one raises KeyboardInterrupt, as Ctrl-C does
    without it. Where one is entered within another, a signal asks both: what a command is a part of stops with it, even
    where the command itself had just come to its end. Outside the main thread, where Python allows no handlers, signals
    stay what they were."""

    def __init__(self) -> None:
        self._requested_s: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopSignal | None = None

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
        assert not self._before, "entered twice"
        self._before = _handle(self._note)
        outers = {getattr(handler, "__self__", None) for handler in self._before.values()}
        self._outer = next((outer for outer in outers if isinstance(outer, StopSignal)), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._before, self._outer = {}, None

    def _note(self, number: int, frame: FrameType | None) -> None:
        received.set()
        if self.is_requested:
            raise Interruption
        each: StopSignal | None = self
        while each is not None:
            each.request()
            each = each._outer


@contextmanager
def signals_held() -> Iterator[None]:
    """What must not be left half done, such as starting Ray: a signal raises KeyboardInterrupt at the end of the block,
    a second one at once. Handlers that the block puts in place are gone after it."""
    with StopSignal() as stop:
        yield
    if stop.is_requested:
        raise Interruption


def _handle(handler: Any) -> dict[signal.Signals, Any]:
    """Put a handler in place of those of all signals that are not ignored (nohup, a shell's `&`), and return those."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    asked = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in asked}


def _leave(number: int, frame: FrameType | None) -> None:
    sys.stderr.write(f"{INTERRUPTED}\n")
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> None:
    received.set()
    raise Interruption
