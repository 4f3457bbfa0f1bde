"""A worker that does its shards one at a time, and whose shards commit themselves."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import replace

from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.runs.activity import Activity, Track
from tatok_pipe.runs.shard_work import ShardResult, describe_error

logger = logging.getLogger(__name__)


class ImageCount:
    """The images of a shard as they come, told to its track."""

    def __init__(self, track: Track) -> None:
        self.num_images = 0
        self._track = track

    def add(self, more: int) -> None:
        """So many more; none tells that the shard goes on."""
        self.num_images += more
        self._track.advance(images=more, tokens=0, quarantined=0, share=0.0)


class SerialWorker(ABC):
    """See `ShardWorker`."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self.activity = Activity(num_lanes=1)

    def __call__(self, url: str, *, max_tries: int) -> ShardResult:
        start = time.monotonic()
        with self.activity.follow(url) as track, self._turn:
            if self._stopping.is_set():
                return ShardResult(url, was_begun=False)
            track.begin()
            try:
                with self.activity.encoding():
                    result = self.do(url, track)
            except Exception as error:
                if not isinstance(error, (OSError, ShardError, UserError)):
                    logger.error("%s", url, exc_info=error)
                result = ShardResult(url, error=describe_error(error))
        return replace(result, seconds=time.monotonic() - start)

    def stop_taking(self) -> None:
        self._stopping.set()

    @abstractmethod
    def do(self, url: str, track: Track) -> ShardResult:
        """Do a shard and commit it; `track` is to be told of progress. Whatever is raised becomes an error of it."""
