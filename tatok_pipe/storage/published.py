"""What is published, and what a store tells of it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

Checksum = Literal["md5", "sha256", "git"]  # git: of a blob
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """What is published: bytes, or a finished local file."""

    data: bytes | None = None
    local_path: str = ""
    part_bytes: int | None = None  # on S3; None for what suits

    @property
    def size_bytes(self) -> int:
        return os.stat(self.local_path).st_size if self.data is None else len(self.data)

    def open(self) -> BinaryIO:
        return open(self.local_path, "rb") if self.data is None else io.BytesIO(self.data)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def copy(self, target: BinaryIO) -> None:
        with self.open() as file:
            shutil.copyfileobj(file, target, _CHUNK_BYTES)

    def digest(self, checksum: Checksum = "md5") -> bytes:
        hasher = new_hasher(checksum, self.size_bytes)
        with self.open() as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
        return hasher.digest()

    def upload(self, filesystem: Any, path: str, **options: Any) -> None:
        """By the driver's own way, which takes `options`."""
        if self.data is not None:
            filesystem.pipe_file(path, self.data, **options)
        else:
            filesystem.put_file(self.local_path, path, **options)


@dataclass(frozen=True)
class Found:
    """An object as the store tells it."""

    size_bytes: int
    digest: str  # hexadecimal; empty where the store tells none
    writer: str  # the mark that `create` left on it; empty where there is none
    checksum: Checksum = "md5"  # what the digest is of


def new_hasher(checksum: Checksum, size_bytes: int) -> Any:
    """A hasher for a content of so many bytes."""
    # None of these is there for security; they are the only ones that the stores take or tell.
    if checksum == "git":
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return cast(Any, hashlib.new(checksum, usedforsecurity=False))
