"""A watch on an embedded Ray: where its raylet or GCS server dies, a driver would wait for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from tatok_pipe.errors import EXIT_FAILED_SHARDS, UserError
from tatok_pipe.runs import job

_LOOK_EVERY_S = 0.5
_SIGNAL_FIRST_S = 2.0  # a SIGTERM to every process of the job may reach this one after the others
_WAKE_EVERY_S = 2.0
_LEAVE_S = 10.0  # after which a driver that could not be woken is ended
_NEEDED = ("raylet", "gcs_server")


class RayDiedError(UserError):
    """A process that an embedded Ray cannot be without is gone, and everything that ran in it."""

    exit_code = EXIT_FAILED_SHARDS


class RayWatch:
    """Looks after the processes of an embedded Ray (`Node.all_processes`: lists of what has a `process`, by kind).

    `check` raises once one of them is gone, for loops that call it. A main thread that waits inside of Ray is woken
    with the same error by a signal (SIGUSR2), and where even that does not help the process is ended with its
    summary, so that nothing of it lasts for more than some seconds.
    """

    def __init__(self, processes: dict[str, list[Any]], *, logs: str) -> None:
        self._processes = {kind: [info.process for info in infos] for kind, infos in processes.items()}
        self._logs = logs
        self._first = ""  # the kind that died first
        self._dead_s = 0.0  # when that was seen
        self._is_closed = threading.Event()
        self._can_wake = threading.current_thread() is threading.main_thread()
        if self._can_wake:
            signal.signal(signal.SIGUSR2, self._raise)
        threading.Thread(target=self._look, name="ray watch", daemon=True).start()

    @property
    def has_died(self) -> bool:
        return bool(self._dead())

    def check(self) -> None:
        """Raise RayDiedError where Ray is gone, KeyboardInterrupt where that is what a signal to all has done."""
        if not job.is_running() or not (dead := self._dead()):
            return
        while not job.was_interrupted() and time.monotonic() < self._dead_s + _SIGNAL_FIRST_S:
            time.sleep(0.1)
        if job.was_interrupted():
            raise KeyboardInterrupt
        raise self._died(dead)

    def close(self) -> None:
        """Look no more: this Ray was shut down."""
        self._is_closed.set()

    def _look(self) -> None:
        while not (dead := self._dead()):
            if self._is_closed.wait(_LOOK_EVERY_S):
                return
        if self._is_closed.wait(_SIGNAL_FIRST_S):
            return
        for process in (process for processes in self._processes.values() for process in processes):
            process.kill()  # what is left of it serves nobody, and may outlive us
        if self._can_wake:
            self._wake(self._died(dead))

    def _died(self, dead: str) -> RayDiedError:
        return RayDiedError(
            f"Ray's {dead} died, and with it every process of this run; its last words are in {self._logs}; what is "
            "finished stays, the same command does the rest"
        )

    def _wake(self, error: RayDiedError) -> None:
        until = time.monotonic() + _LEAVE_S
        while time.monotonic() < until:
            if self._is_closed.wait(_WAKE_EVERY_S) or not job.is_running():
                return
            os.kill(os.getpid(), signal.SIGUSR2)
        job.end_now(error)

    def _dead(self) -> str:
        """The kind of process that went first, with what is known of its end; empty while all live."""
        if not self._first:
            for kind in _NEEDED:
                for process in self._processes.get(kind, []):
                    if (code := process.poll()) is not None:
                        self._dead_s = time.monotonic()
                        told = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                        self._first = f"{kind} ({told})"
                        return self._first
        return self._first

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.check()
