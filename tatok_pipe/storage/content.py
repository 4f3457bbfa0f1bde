"""SHA-256 of the bytes of a file: what tells its versions apart where the store has no content tag."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

from tatok_pipe.storage.files import SourceInfo
from tatok_pipe.storage.reader import open_stream

_CHUNK_BYTES = 4 << 20


class HashingReader(io.BufferedIOBase):
    """A sequential reader that feeds `hasher` (of hashlib) with every byte that passes; closes what it reads from."""

    def __init__(self, stream: BinaryIO, hasher: Any) -> None:
        super().__init__()
        self._stream, self._hasher = stream, hasher

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._hasher.update(data)
        return data

    def read_rest(self) -> None:
        """Pass over what is left, so that the hash is that of the whole file."""
        while self.read(_CHUNK_BYTES):
            pass

    def close(self) -> None:
        self._stream.close()
        super().close()


def hash_file(url: str, *, info: SourceInfo) -> str:
    """SHA-256 of the version `info` (from `file_info`) of the file at `url`, 64 hex digits. Raises OSError as
    `open_stream`."""
    hasher = hashlib.sha256()
    with open_stream(url, info=info) as stream:
        HashingReader(stream, hasher).read_rest()
    return hasher.hexdigest()
