"""Streaming a file: byte ranges fetched ahead in parallel, delivered in order, in bounded memory.

From a web server that gives no ranges the parts come one after the other out of one download.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol, cast

from tatok_pipe.storage import http, retry
from tatok_pipe.storage.faults import LastingError
from tatok_pipe.storage.files import SourceInfo, file_info, read_range
from tatok_pipe.storage.urls import (
    close_apart,
    is_for_one_thread,
    is_http,
    is_local,
    open_apart,
    open_filesystem,
    redact,
)

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 20


def open_stream(
    url: str,
    *,
    part_bytes: int = 16 << 20,
    num_parallel: int = 8,
    info: SourceInfo | None = None,
    span: tuple[int, int] | None = None,
) -> BinaryIO:
    """A sequential reader of the file at `url`, or of its bytes `span` ([start, stop), within the file) alone; close it
    when done.

    A remote file is fetched in ranges of `part_bytes`, `num_parallel` of them ahead of the reader, so that at
    most `part_bytes * num_parallel` bytes are held. Each range is tried again while its error may pass. With
    `info` (from `file_info`) the reader delivers that version of the file or fails. Reading raises OSError
    naming the URL where a range stays short or the file changes meanwhile; what was read before such an error
    is to be thrown away. A file that fits into one range costs one GET.

    A web server that gives no ranges is asked for the whole file once; where that breaks off, again from the
    beginning, and what was had before is passed over, as is what comes before a span.
    """
    if part_bytes < 1 or num_parallel < 1:
        raise ValueError(f"part_bytes={part_bytes}, num_parallel={num_parallel}: expected at least 1 each")
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _open_local(path, info, span)
    info, is_given = info or file_info(url), info is not None
    source: Source = Ranges(filesystem, path)
    if (
        is_http(filesystem)
        and (info.size_bytes > part_bytes or span is not None)
        and not source_gives_ranges(filesystem, path, url)
    ):
        logger.info("%s: the server gives no ranges; the file is read as one stream", redact(url))
        source = Stream(filesystem, path)
    elif is_for_one_thread(filesystem):
        source = OneConnection(url)
    reader = RangeReader(
        source,
        url=url,
        part_bytes=part_bytes,
        num_parallel=num_parallel,
        info=info,
        is_version_given=is_given,
        span=span or (0, info.size_bytes),
    )
    # RawIOBase is what BufferedReader documents to take; its type stub asks for a private protocol instead.
    return cast(BinaryIO, io.BufferedReader(cast(Any, reader), buffer_size=_BUFFER_BYTES))


def _open_local(path: str, info: SourceInfo | None, span: tuple[int, int] | None) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    size_bytes = os.fstat(file.fileno()).st_size
    if info is not None and size_bytes != info.size_bytes:
        file.close()
        raise OSError(
            f"{path}: changed before it was read: {info.size_bytes} bytes before, {size_bytes} after"
        )
    if span is None:
        return file
    return cast(BinaryIO, io.BufferedReader(cast(Any, _Span(file, *span)), buffer_size=_BUFFER_BYTES))


class _Span(io.RawIOBase):
    """Some bytes of a local file."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        super().__init__()
        self._file, self._num_left = file, stop - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._num_left))
        buffer[: len(data)] = data
        self._num_left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def source_gives_ranges(filesystem: Any, path: str, url: str) -> bool:
    """Whether the web server of `url` gives parts of its file."""
    return retry.call(lambda: http.gives_ranges(filesystem, path), url=url)


def check_unchanged(url: str, info: SourceInfo) -> None:
    """Raise OSError where the file at `url` is another version than `info` by now."""
    found = file_info(url)
    if found != info:
        raise OSError(f"{redact(url)}: changed while it was read: {info} before, {found} after")


class Source(Protocol):
    """Where the parts of a file come from."""

    is_sequential: bool  # whether parts are to be asked for one after the other, without gaps

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), in one attempt; fewer where the answer ends early."""
        ...

    def close(self) -> None:
        """Give up what is under way."""
        ...


class Ranges:
    """A store that gives any part of a file, several at a time."""

    is_sequential = False

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path

    def read(self, start: int, stop: int) -> bytes:
        return read_range(self._filesystem, self._path, start, stop)

    def close(self) -> None:
        pass


class OneConnection:
    """A store whose driver is for one thread: the connection of the thread that reads."""

    is_sequential = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: tuple[Any, str] | None = None

    def read(self, start: int, stop: int) -> bytes:
        self._opened = self._opened or open_apart(self._url)
        return read_range(*self._opened, start, stop)

    def close(self) -> None:
        if (opened := self._opened) is not None:
            self._opened = None
            close_apart(opened[0])


class Stream:
    """A web server that gives a file as a whole or not at all: one download, begun again after an error."""

    is_sequential = True

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._download: http.Download | None = None
        self._version: tuple[str, ...] | None = None

    def read(self, start: int, stop: int) -> bytes:
        try:
            download = self._download = self._download or http.Download(self._filesystem, self._path)
            self._version = self._version or download.version
            if download.version != self._version:
                raise LastingError("the file was changed while it was downloaded")
            download.skip(start - download.position)
            return download.read(stop - start)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if (download := self._download) is not None:
            self._download = None
            download.close()


class RangeReader(io.RawIOBase):
    """The unbuffered reader behind `open_stream`."""

    def __init__(
        self,
        source: Source,
        *,
        url: str,
        part_bytes: int,
        num_parallel: int,
        info: SourceInfo,
        is_version_given: bool,
        span: tuple[int, int],
    ) -> None:
        super().__init__()
        self._source = source
        self._url = url
        self._info = info
        begin, end = span
        starts = range(begin, end, part_bytes)
        self._ranges = deque((start, min(start + part_bytes, end)) for start in starts)
        # One GET sees one version of an object; several may straddle a change.
        self._may_straddle = is_version_given or len(self._ranges) > 1
        self._num_parallel = num_parallel
        self._window: deque[Future[bytes]] = deque()
        self._part = memoryview(b"")
        self._cancelled = threading.Event()
        num_workers = 1 if source.is_sequential else num_parallel
        self._pool = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="range-reader")
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
            self._source.close()
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
            check_unchanged(self._url, self._info)
        self._window.popleft()
        self._part = memoryview(data)

    def _fetch_ahead(self) -> None:
        while self._ranges and len(self._window) < self._num_parallel:
            start, stop = self._ranges.popleft()
            self._window.append(self._pool.submit(self._fetch, start, stop))

    def _fetch(self, start: int, stop: int) -> bytes:
        def fetch() -> bytes:
            if self._cancelled.is_set():
                raise CancelledError
            data = self._source.read(start, stop)
            if len(data) != stop - start:
                self._source.close()  # who asks again begins anew
                raise OSError(
                    f"bytes {start}-{stop} of {self._info.size_bytes}: got {len(data)} of {stop - start} bytes"
                )
            return data

        return retry.call(fetch, url=self._url, pause=self._cancelled.wait)
