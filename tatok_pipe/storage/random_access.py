"""A file read at any place, for formats with a footer: blocks by ranged requests, a few held, the next ones ahead."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Protocol

from tatok_pipe.errors import mark_outside_cause
from tatok_pipe.storage import retry
from tatok_pipe.storage.faults import LastingError
from tatok_pipe.storage.files import SourceInfo, read_range
from tatok_pipe.storage.reader import check_unchanged, open_stream, source_gives_ranges
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

_COPY_BYTES = 1 << 20


class RandomAccess(Protocol):
    """A readable, seekable binary file. `read` gives all that was asked for, but at the end of the file."""

    @property
    def closed(self) -> bool: ...

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which byte ranges [start, stop) will be read, about in this order, so that nothing else is
        fetched ahead. None are known in the beginning."""
        ...

    def check_unchanged(self) -> None:
        """Raise OSError where the file is another version by now than the one that was opened."""
        ...


def open_random_access(
    url: str, *, info: SourceInfo, block_bytes: int = 4 << 20, num_ahead: int = 8
) -> RandomAccess:
    """A reader of any place of the version `info` of the file at `url`; close it when done.

    A remote file is fetched in blocks of `block_bytes`, each tried again while its error may pass. At most
    `2 * num_ahead + 2` blocks are held: those read last, and up to `num_ahead` fetched ahead. The last block
    and the first one are fetched at once. Reading raises OSError naming the URL where a block stays short.

    From a web server that gives no ranges the whole file is downloaded into the folder of temporary files first, and
    is gone from there when it is closed. Raises OSError where there is no room for it.
    """
    if block_bytes < 1 or num_ahead < 1:
        raise ValueError(f"block_bytes={block_bytes}, num_ahead={num_ahead}: expected at least 1 each")
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return LocalFile(path, info)
    if is_http(filesystem) and not source_gives_ranges(filesystem, path, url):
        return DownloadedFile(url, info)
    is_apart = is_for_one_thread(filesystem)
    if is_apart:
        filesystem, path = open_apart(url)
    return BlockReader(
        filesystem,
        path,
        url=url,
        info=info,
        block_bytes=block_bytes,
        num_ahead=1 if is_apart else num_ahead,
        is_apart=is_apart,
    )


class LocalFile(io.FileIO):
    """A file of this machine: the system caches it and reads ahead by itself."""

    def __init__(self, path: str, info: SourceInfo) -> None:
        super().__init__(path, "rb")
        self._path = path
        self._info = info
        self.check_unchanged()

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        pass

    def check_unchanged(self) -> None:
        size_bytes = os.fstat(self.fileno()).st_size
        if size_bytes != self._info.size_bytes:
            self.close()
            raise OSError(
                f"{self._path}: changed before it was read to its end: {self._info.size_bytes} bytes before, "
                f"{size_bytes} after"
            )


class DownloadedFile(io.FileIO):
    """A copy of a file whose server gives it as a whole only."""

    def __init__(self, url: str, info: SourceInfo) -> None:
        folder = tempfile.gettempdir()
        shown, size = redact(url), info.size_bytes
        num_free = shutil.disk_usage(folder).free
        if num_free < size:
            raise mark_outside_cause(
                LastingError(
                    f"{shown}: the server gives no ranges, so the file has to be downloaded first, and {folder} has "
                    f"{num_free} of its {size} bytes free; make room, or set TMPDIR to a folder on another disk"
                )
            )
        logger.warning(
            "%s: the server gives no ranges; downloading %d bytes to %s first", shown, size, folder
        )
        descriptor, path = tempfile.mkstemp(prefix="tatok-download-")
        super().__init__(descriptor, "r+b")
        self._url = url
        self._info = info
        try:
            os.unlink(path)  # so that nothing is left of it, however this process ends
            with open_stream(url, info=info) as source:
                shutil.copyfileobj(source, self, _COPY_BYTES)
        except BaseException:
            self.close()
            raise
        self.seek(0)

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        pass

    def check_unchanged(self) -> None:
        check_unchanged(self._url, self._info)


class BlockReader(io.RawIOBase):
    """The remote reader behind `open_random_access`. For one thread at a time."""

    def __init__(
        self,
        filesystem: Any,
        path: str,
        *,
        url: str,
        info: SourceInfo,
        block_bytes: int,
        num_ahead: int,
        is_apart: bool = False,
    ) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._is_apart = is_apart  # whether the filesystem is closed with the file
        self._path = path
        self._url = url
        self._info = info
        self._block_bytes = block_bytes
        self._num_ahead = num_ahead
        self._position = 0
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()  # last used last
        self._planned: list[int] = []  # blocks to be read, ascending
        self._begun: set[int] = set()  # blocks ever fetched: one read again is not worth reading ahead from
        self._cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=num_ahead, thread_name_prefix="block-reader")
        if info.size_bytes:
            self._begin((info.size_bytes - 1) // block_bytes)
            self._begin(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size_bytes}[whence]
        if base + offset < 0:
            raise OSError(f"{redact(self._url)}: seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        stop = self._info.size_bytes if size < 0 else min(self._position + size, self._info.size_bytes)
        pieces = []
        while self._position < stop:
            number, offset = divmod(self._position, self._block_bytes)
            piece = self._block(number)[offset : offset + stop - self._position]
            pieces.append(piece)
            self._position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._cancelled.set()
            self._blocks.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self._is_apart:
                close_apart(self._filesystem)
        super().close()

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        planned: set[int] = set()
        for start, stop in ranges:
            last = (min(stop, self._info.size_bytes) - 1) // self._block_bytes
            planned.update(range(start // self._block_bytes, last + 1))
        self._planned = sorted(planned)
        self._fetch_ahead(-1)

    def check_unchanged(self) -> None:
        check_unchanged(self._url, self._info)

    def _block(self, number: int) -> bytes:
        self._begin(number)
        self._blocks.move_to_end(number)  # first of all, or the blocks ahead might take its place
        self._fetch_ahead(number)
        try:
            return self._blocks[number].result()
        except Exception:
            del self._blocks[number]  # who reads on after an error asks again
            raise

    def _fetch_ahead(self, number: int) -> None:
        """Begin the `num_ahead` planned blocks behind `number`, but those that were had before."""
        first = bisect_right(self._planned, number)
        for ahead in self._planned[first : first + self._num_ahead]:
            if ahead not in self._begun:
                self._begin(ahead)

    def _begin(self, number: int) -> None:
        if number in self._blocks:
            return
        while len(self._blocks) >= 2 * self._num_ahead + 2:
            self._blocks.popitem(last=False)[1].cancel()
        start = number * self._block_bytes
        stop = min(start + self._block_bytes, self._info.size_bytes)
        self._blocks[number] = self._pool.submit(self._fetch, start, stop)
        self._begun.add(number)

    def _fetch(self, start: int, stop: int) -> bytes:
        return retry.call(lambda: self._fetch_once(start, stop), url=self._url, pause=self._cancelled.wait)

    def _fetch_once(self, start: int, stop: int) -> bytes:
        if self._cancelled.is_set():
            raise CancelledError
        data = read_range(self._filesystem, self._path, start, stop)
        if len(data) != stop - start:
            raise OSError(
                f"bytes {start}-{stop} of {self._info.size_bytes}: got {len(data)} of {stop - start} bytes"
            )
        return data
