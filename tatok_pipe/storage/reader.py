"""Streaming a file: byte ranges fetched ahead in parallel, delivered in order, in bounded memory."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from tatok_pipe.storage import retry
from tatok_pipe.storage.files import SourceInfo, file_info
from tatok_pipe.storage.urls import is_local, open_filesystem, redact

_BUFFER_BYTES = 1 << 20


def open_stream(
    url: str, *, part_bytes: int = 16 << 20, num_parallel: int = 8, info: SourceInfo | None = None
) -> BinaryIO:
    """A sequential reader of the file at `url`; close it when done.

    A remote file is fetched in ranges of `part_bytes`, `num_parallel` of them ahead of the reader, so that at
    most `part_bytes * num_parallel` bytes are held. Each range is tried again while its error may pass. With
    `info` (from `file_info`) the reader delivers that version of the file or fails. Reading raises OSError
    naming the URL where a range stays short or the file changes meanwhile; what was read before such an error
    is to be thrown away. A file that fits into one range costs one GET.
    """
    if part_bytes < 1 or num_parallel < 1:
        raise ValueError(f"part_bytes={part_bytes}, num_parallel={num_parallel}: expected at least 1 each")
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _open_local(path, info)
    reader = RangeReader(
        filesystem, path, url=url, part_bytes=part_bytes, num_parallel=num_parallel, info=info
    )
    # RawIOBase is what BufferedReader documents to take; its type stub asks for a private protocol instead.
    return cast(BinaryIO, io.BufferedReader(cast(Any, reader), buffer_size=_BUFFER_BYTES))


def _open_local(path: str, info: SourceInfo | None) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    size_bytes = os.fstat(file.fileno()).st_size
    if info is not None and size_bytes != info.size_bytes:
        file.close()
        raise OSError(
            f"{path}: changed before it was read: {info.size_bytes} bytes before, {size_bytes} after"
        )
    return file


class RangeReader(io.RawIOBase):
    """The unbuffered reader behind `open_stream`."""

    def __init__(
        self,
        filesystem: Any,
        path: str,
        *,
        url: str,
        part_bytes: int,
        num_parallel: int,
        info: SourceInfo | None,
    ) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._path = path
        self._url = url
        self._info = info or file_info(url)
        starts = range(0, self._info.size_bytes, part_bytes)
        self._ranges = deque((start, min(start + part_bytes, self._info.size_bytes)) for start in starts)
        # One GET sees one version of an object; several may straddle a change.
        self._may_straddle = info is not None or len(self._ranges) > 1
        self._num_parallel = num_parallel
        self._window: deque[Future[bytes]] = deque()
        self._part = memoryview(b"")
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=num_parallel, thread_name_prefix="range-reader")
        self._fetch_ahead()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not self._part:
            self._next_part()
        num_bytes = min(len(buffer), len(self._part))
        buffer[:num_bytes] = self._part[:num_bytes]
        self._part = self._part[num_bytes:]
        return num_bytes

    def close(self) -> None:
        if not self.closed:
            self._cancelled.set()
            self._part = memoryview(b"")
            self._window.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _next_part(self) -> None:
        # The old part is gone by now, so a full window keeps memory at `num_parallel` parts.
        self._fetch_ahead()
        if not self._window:
            return
        # A failed range stays at the head of the window: a caller that reads on after an error meets it
        # again, never the bytes behind the gap.
        data = self._window[0].result()
        if len(self._window) == 1 and not self._ranges and self._may_straddle:
            self._check_unchanged()
        self._window.popleft()
        self._part = memoryview(data)

    def _fetch_ahead(self) -> None:
        while self._ranges and len(self._window) < self._num_parallel:
            start, stop = self._ranges.popleft()
            self._window.append(self._pool.submit(self._fetch, start, stop))

    def _fetch(self, start: int, stop: int) -> bytes:
        return retry.call(lambda: self._fetch_once(start, stop), url=self._url, pause=self._cancelled.wait)

    def _fetch_once(self, start: int, stop: int) -> bytes:
        if self._cancelled.is_set():
            raise CancelledError
        data = self._filesystem.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(
                f"bytes {start}-{stop} of {self._info.size_bytes}: got {len(data)} of {stop - start} bytes"
            )
        return data

    def _check_unchanged(self) -> None:
        found = file_info(self._url)
        if found != self._info:
            raise OSError(
                f"{redact(self._url)}: changed while it was read: {self._info} before, {found} after"
            )
