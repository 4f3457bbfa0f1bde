"""A watch on Ray: where what it cannot be without is gone, a driver would wait for ever, or be ended without a word."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any, Protocol

from tatok_pipe.errors import EXIT_FAILED_SHARDS, UserError
from tatok_pipe.runs import job
from tatok_pipe.runs.stop_signal import Interruption

_LOOK_EVERY_S = 0.5
_SIGNAL_FIRST_S = 2.0  # a SIGTERM to every process of the job may reach this one after the others
_WAKE_EVERY_S = 2.0
_LEAVE_S = 10.0  # after which a driver that could not be woken is ended
_NEEDED = ("raylet", "gcs_server")
# How long Ray tries to reach the head of a cluster before it ends the process, with exit code 1 and a line of its own.
_RAY_ENDS_US = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAY_ENDS_US_S = 60.0
_ASK_EVERY_S, _CONNECT_S = 2.0, 2.0
_NODE_PATIENCE_S = 5.0  # with one on this machine


class RayDiedError(UserError):
    """What Ray cannot be without is gone, and everything that ran in it."""

    exit_code = EXIT_FAILED_SHARDS


class Watched(Protocol):
    """A Ray that somebody depends on."""

    def find_dead(self) -> str:
        """What of it is gone for good, and what that means, in one line; empty while all lives."""
        ...

    def end(self) -> None:
        """End what is left of it and serves nobody."""
        ...


class EmbeddedRay:
    """One that this process started (`Node.all_processes`: lists of what has a `process`, by kind), with its GCS server
    at `address`, HOST:PORT: one that was told to end may take no connections for long before its process is gone."""

    def __init__(self, processes: dict[str, list[Any]], *, address: str, logs: str) -> None:
        self._processes = {kind: [info.process for info in infos] for kind, infos in processes.items()}
        self._server = _Server(address)
        self._logs = logs

    def find_dead(self) -> str:
        first = ""
        for kind in _NEEDED:
            for process in self._processes.get(kind, []):
                if not first and (code := process.poll()) is not None:
                    told = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    first = f"{kind} ({told})"
        if not first and self._server.silent_s() > _NODE_PATIENCE_S:
            first = "gcs_server (it takes no connections)"
        if not first:
            return ""
        return (
            f"Ray's {first} died, and with it every process of this run; its last words are in {self._logs}; "
            "what is finished stays, the same command does the rest"
        )

    def end(self) -> None:
        for process in (process for processes in self._processes.values() for process in processes):
            process.kill()  # it may outlive us

    def end_monitor(self) -> None:
        """The autoscaler's, which has nothing to scale and takes memory. Ray tells it to end when the GCS server is
        gone, and waits for a second in vain."""
        for process in self._processes.get("monitor", []):
            process.kill()


class JoinedRay:
    """A cluster that somebody else started, with the GCS server of its head at `address`, and the raylet of the node
    that we joined at `node`, both HOST:PORT.

    A head may come back (Kubernetes with Redis); Ray waits for that for a minute and then ends this process. We are
    earlier by as much as it takes to tell. A node does not come back, and to a cluster that lives on we are dead with
    it: it starts nothing for us any more.
    """

    def __init__(self, address: str, node: str) -> None:
        self._address, self._node = address, node
        self._head, self._raylet = _Server(address), _Server(node)
        self._patience_s = float(os.environ.get(_RAY_ENDS_US, _RAY_ENDS_US_S)) - 2 * _LEAVE_S

    def find_dead(self) -> str:
        head_s, raylet_s = self._head.silent_s(), self._raylet.silent_s()
        if head_s > self._patience_s:
            told = f"the head of the Ray cluster at {self._address} has not answered for {head_s:.0f} s"
        elif raylet_s > _NODE_PATIENCE_S and not head_s:
            told = (
                f"the node of the Ray cluster at {self._address} that this command joined, {self._node}, died"
            )
        else:
            return ""
        return f"{told}; what is finished stays, the same command does the rest once there is a cluster again"

    def end(self) -> None:
        pass


class _Server:
    """Whether a port takes connections, asked now and then."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._place = host.strip("[]"), int(port)
        self._asked_s = self._answered_s = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since it took the last one; 0 where it does."""
        now = time.monotonic()
        if now - self._asked_s > _ASK_EVERY_S:
            self._asked_s = now
            try:
                socket.create_connection(self._place, timeout=_CONNECT_S).close()
                self._answered_s = self._asked_s
            except OSError:
                pass
        return self._asked_s - self._answered_s


class RayWatch:
    """Looks after a Ray.

    `check` raises once something of it is gone, for loops that call it. A main thread that waits inside of Ray is woken
    with the same error by a signal (SIGUSR2), and where even that does not help the process is ended with its
    summary, so that nothing of it lasts for more than some seconds.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._dead = ""
        self._dead_s = 0.0  # when that was seen
        self._is_closed = threading.Event()
        self._can_wake = threading.current_thread() is threading.main_thread()
        if self._can_wake:
            signal.signal(signal.SIGUSR2, self._raise)
        threading.Thread(target=self._look, name="ray watch", daemon=True).start()

    @property
    def has_died(self) -> bool:
        return bool(self._find_dead())

    def check(self) -> None:
        """Raise RayDiedError where Ray is gone, KeyboardInterrupt where that is what a signal to all has done."""
        if not job.is_running() or not (dead := self._find_dead()):
            return
        while not job.was_interrupted() and time.monotonic() < self._dead_s + _SIGNAL_FIRST_S:
            time.sleep(0.1)
        if job.was_interrupted():
            raise Interruption
        raise RayDiedError(dead)

    def close(self) -> None:
        """Look no more: this Ray was shut down."""
        self._is_closed.set()

    def _look(self) -> None:
        while not (dead := self._find_dead()):
            if self._is_closed.wait(_LOOK_EVERY_S):
                return
        if self._is_closed.wait(_SIGNAL_FIRST_S):
            return
        self._watched.end()
        if self._can_wake:
            self._wake(RayDiedError(dead))

    def _wake(self, error: RayDiedError) -> None:
        until = time.monotonic() + _LEAVE_S
        while time.monotonic() < until:
            if self._is_closed.wait(_WAKE_EVERY_S) or not job.is_running():
                return
            os.kill(os.getpid(), signal.SIGUSR2)
        job.end_now(error)

    def _find_dead(self) -> str:
        """What is gone, in one line; empty while all lives."""
        if not self._dead and (dead := self._watched.find_dead()):
            self._dead_s = time.monotonic()
            self._dead = dead
        return self._dead

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.check()
