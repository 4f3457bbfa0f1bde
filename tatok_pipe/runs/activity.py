"""What a worker is doing, for whoever watches it: how far each shard is, queue depths, busy time.

Written by the threads that do the work, read by another; plain data, so that it can cross processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ShardStatus:
    """A shard that a worker holds."""

    url: str
    is_working: bool = (
        False  # False while it waits for the shard before it; its first bytes may be on their way
    )
    num_images: int = 0
    num_tokens: int = 0
    num_quarantined: int = 0
    share: float = 0.0  # of the shard's bytes that is behind us
    num_tries: int = 0  # begun in this process
    work_s: float = 0.0  # since its turn came, in this process
    idle_s: float = 0.0  # since its last step forward, while it works


@dataclass(frozen=True)
class WorkerStatus:
    shards: tuple[ShardStatus, ...] = ()
    queued_samples: int = 0  # read, and not decoded yet
    queued_batches: int = 0  # decoded, and not encoded yet
    lane_busy_s: float = 0.0  # time of encoding, a mean over the lanes, since the worker started


class Depths:
    """How much of one attempt at a shard waits between the stages. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.samples = 0
        self.batches = 0

    def add(self, *, samples: int = 0, batches: int = 0) -> None:
        with self._lock:
            self.samples += samples
            self.batches += batches


class Track:
    """The moving part of one shard. Every call of `advance` or `touch` is a sign of life."""

    def __init__(self, url: str) -> None:
        self.depths = Depths()
        self._status = ShardStatus(url)
        self._began_s = 0.0
        self._touched_s = 0.0

    def begin(self) -> None:
        """Its turn has come: the clocks start, the counts are those of a new attempt."""
        self.depths = Depths()  # what is left of an earlier attempt in the pools counts on its own
        self._began_s = self._touched_s = time.monotonic()
        num_tries = self._status.num_tries + 1
        self._status = ShardStatus(self._status.url, is_working=True, num_tries=num_tries)

    def touch(self) -> None:
        self._touched_s = time.monotonic()

    def advance(self, *, images: int, tokens: int, quarantined: int, share: float) -> None:
        old = self._status
        self._status = replace(
            old,
            num_images=old.num_images + images,
            num_tokens=old.num_tokens + tokens,
            num_quarantined=old.num_quarantined + quarantined,
            share=share,
        )
        self.touch()

    def wait(self) -> None:
        """Between two attempts: what the last one counted does not stand."""
        self._status = ShardStatus(self._status.url, num_tries=self._status.num_tries)

    @property
    def status(self) -> ShardStatus:
        status = self._status
        if not status.is_working:
            return status
        now = time.monotonic()
        return replace(status, work_s=now - self._began_s, idle_s=now - self._touched_s)


class Activity:
    """A worker's part of it. Thread-safe."""

    def __init__(self, *, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._lock = threading.Lock()
        self._tracks: list[Track] = []
        self._busy_s = 0.0
        self._busy_since: dict[int, float] = {}  # thread -> when its batch began

    @contextmanager
    def follow(self, url: str) -> Iterator[Track]:
        track = Track(url)
        with self._lock:
            self._tracks.append(track)
        try:
            yield track
        finally:
            with self._lock:
                self._tracks.remove(track)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Time of one lane, one batch."""
        me = threading.get_ident()
        with self._lock:
            self._busy_since[me] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._busy_s += time.monotonic() - self._busy_since.pop(me)

    @property
    def status(self) -> WorkerStatus:
        with self._lock:
            now = time.monotonic()
            busy_s = self._busy_s + sum(now - since for since in self._busy_since.values())
            return WorkerStatus(
                shards=tuple(track.status for track in self._tracks),
                queued_samples=sum(track.depths.samples for track in self._tracks),
                queued_batches=sum(track.depths.batches for track in self._tracks),
                lane_busy_s=busy_s / self._num_lanes,
            )
