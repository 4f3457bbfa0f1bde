"""Tars behind a compression, as the streams that they are without it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.images.webdataset.tar import BrokenTar


def _arrow(codec: str) -> Callable[[Any], Any]:
    return lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)


# By the end of a name: what reads the compressed stream.
READERS: dict[tuple[str, ...], Callable[[Any], Any]] = {
    (".tar.gz", ".tgz"): lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    (".tar.bz2", ".tbz2"): bz2.BZ2File,
    (".tar.xz", ".txz"): lzma.LZMAFile,
    (".tar.zst", ".tzst"): _arrow("zstd"),
    (".tar.lz4",): _arrow("lz4"),
}
_SUFFIXES = tuple(suffix for suffixes in READERS for suffix in suffixes)
TAR_SUFFIXES = (".tar", *_SUFFIXES)
_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)


class _Watched(io.RawIOBase):
    """A stream that remembers its own error, so that it is not taken for one of the compression."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except BaseException as error:
            self.error = error
            raise
        buffer[: len(data)] = data
        return len(data)


class Decompressed(io.RawIOBase):
    """What is in the compressed stream of the file at `url`. Reading raises BrokenTar where it is damaged or ends
    early; errors of the stream itself pass through. At its end all of the compressed stream has been read."""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        super().__init__()
        name = storage.file_name(url)
        self._source = _Watched(stream)
        self._buffered = io.BufferedReader(self._source, 1 << 20)
        open_reader = next(READERS[ends] for ends in READERS if name.endswith(ends))
        self._reader = open_reader(self._buffered)
        self._offset = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._reader.read(size)
        except _ERRORS as error:
            if self._source.error is not None:
                raise self._source.error from None
            reason = " ".join(str(error).split())
            raise BrokenTar(
                f"damaged or cut off in its compression, behind byte {self._offset} of what it holds ({reason})"
            ) from None
        self._offset += len(data)
        if size and not data:
            while self._buffered.read(1 << 20):
                pass
        return data


def is_compressed_tar(url: str) -> bool:
    """Whether a file is a compressed tar, by its name or URL."""
    return storage.file_name(url).endswith(_SUFFIXES)
