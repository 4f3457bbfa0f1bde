"""Which web servers answer, among those that hold the images of a manifest.

Half of the servers of an old list of addresses are gone, and each has thousands of its images: to ask every time, five
times, for half a minute each, would take longer than all the rest. So one that does not answer is not asked again for a
while, and its images are told to be unreachable at once. Whether this machine has lost its network instead, so that a
corpus would be lost in silence, is found out at another server, which answered before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tatok_pipe import storage

logger = logging.getLogger(__name__)

NUM_FIRST_ATTEMPTS = 2  # of a server that nobody has seen yet, where others were
FORGET_AFTER_S = 900.0


class HostUnreachable(Exception):
    """A web server does not answer; the message is the same for all of its images."""


@dataclass(frozen=True)
class _Dead:
    reason: str
    since: float


class WebHosts:
    """What is known of web servers by now, for many threads. `clock` counts seconds."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, forget_after_s: float = FORGET_AFTER_S
    ) -> None:
        self._clock, self._forget_after_s = clock, forget_after_s
        self._lock = threading.Lock()
        self._dead: dict[str, _Dead] = {}
        self._alive: dict[str, str] = {}  # an image that each one said something of; the last one last
        self.has_answer = False  # whether any server ever answered

    def read(self, url: str, num_bytes: int, *, silence_s: float) -> bytes:
        """As `storage.read_at_most`. Raises HostUnreachable where the server does not answer, or did not a while ago,
        and another one does, or none ever did."""
        host = host_of(url)
        self._check(host)
        is_new = self.has_answer and host not in self._alive
        try:
            data = self._ask(url, num_bytes, silence_s, is_new=is_new)
        except OSError as error:
            reason = storage.why_unreachable(error)
            if not reason:
                self._answered(host, url)
                raise
            self._check(host)  # another thread was told first
            if not self._network_is_there(host, silence_s):
                raise
            with self._lock:
                told = self._dead.setdefault(host, _Dead(reason, self._clock())).reason
                self._alive.pop(host, None)
            logger.warning("%s: %s; its images are not asked for again for a while", host, told)
            raise HostUnreachable(f"{host}: {told}") from error
        self._answered(host, url)
        return data

    def _ask(self, url: str, num_bytes: int, silence_s: float, *, is_new: bool) -> bytes:
        if is_new:
            try:
                return storage.read_at_most(
                    url, num_bytes, silence_s=silence_s, num_attempts=NUM_FIRST_ATTEMPTS
                )
            except (FileNotFoundError, PermissionError, storage.LastingError):
                raise
            except OSError as error:
                if storage.why_unreachable(error):
                    raise
        return storage.read_at_most(url, num_bytes, silence_s=silence_s)

    def _check(self, host: str) -> None:
        with self._lock:
            found = self._dead.get(host)
            if found and self._clock() - found.since > self._forget_after_s:
                found = None
                del self._dead[host]
        if found:
            raise HostUnreachable(f"{host}: {found.reason}")

    def _answered(self, host: str, url: str) -> None:
        with self._lock:
            if not self.has_answer:
                self._dead.clear()  # it may have been the network
            self.has_answer = True
            self._alive.pop(host, None)
            self._alive[host] = url

    def _network_is_there(self, host: str, silence_s: float) -> bool:
        """Whether another server, that which answered last, still does; also where none ever did."""
        with self._lock:
            url = next((self._alive[each] for each in reversed(self._alive) if each != host), "")
            if not url:
                return not self.has_answer
        try:
            storage.read_at_most(url, 1, silence_s=silence_s, num_attempts=NUM_FIRST_ATTEMPTS)
        except OSError as error:
            return not storage.why_unreachable(error)
        return True


def host_of(url: str) -> str:
    """Protocol, host and port of a URL, without who asks."""
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0].rpartition('@')[2].partition('?')[0].lower()}"
