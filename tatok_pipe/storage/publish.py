"""Publishing a finished file in one step: nobody ever sees a part of it, and of several writers one wins."""

from __future__ import annotations

import base64
import errno
import hashlib
import mimetypes
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from tatok_pipe.errors import mark_outside_cause
from tatok_pipe.storage import local, retry
from tatok_pipe.storage.faults import http_status
from tatok_pipe.storage.urls import is_local, is_s3, open_filesystem

_PART_BYTES = 50 << 20
_READ_BYTES = 16 << 20
# Every store that knows conditional PUT decides a race of PUTs. Of multipart completions some check the
# condition and write in two steps (SeaweedFS 4.48: up to three of three racers told 200), so an exclusive
# file is one PUT up to twice this size, although that holds it in memory; a token shard has a few MiB.
_EXCLUSIVE_PART_BYTES = 512 << 20
# Filesystems that cannot hard-link (some network and FUSE mounts) answer with one of these.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def publish_file(
    local_path: str | os.PathLike[str], url: str, *, exclusive: bool, part_bytes: int | None = None
) -> bool:
    """Make the finished local file appear at `url`, whole or not at all. True where this call created it.

    With `exclusive` a file that is there already stays untouched and the answer is False, also for all but
    one of several writers at the same time; else it is replaced and the answer is True. How:

    - local disk: a copy under a hidden temporary name in the same directory, fsync, then a hard link
      (exclusive) or a rename;
    - S3: one PUT, conditional (`If-None-Match: *`) where exclusive; from two `part_bytes` (512 MiB where
      exclusive, else 50 MiB) a multipart upload with a conditional completion;
    - any other filesystem: upload under a temporary name, then move. There exclusive is a check before the
      upload, so two writers of the same instant may both be told True; the last one's file stays.

    On S3 a PUT carries the Content-MD5 of the file, and the store refuses a body that arrives otherwise (each
    part of a multipart upload carries botocore's CRC32). Where exclusive nothing is left to the store's word:
    afterwards the ETag must be that MD5, and where it is no MD5 of the content (KMS encryption, parts) the
    object is read back. What is found wrong is removed and uploaded again.

    Errors that may pass are tried again; raises OSError naming the URL where they do not.
    """
    source = os.fspath(local_path)

    def copy(file: BinaryIO) -> None:
        with open(source, "rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)

    def upload(filesystem: Any, path: str, **options: Any) -> None:
        if is_s3(filesystem):
            options["chunksize"] = part_bytes or (_EXCLUSIVE_PART_BYTES if exclusive else _PART_BYTES)
        filesystem.put_file(source, path, **options)

    def digest() -> bytes:
        with open(source, "rb") as content:
            return hashlib.file_digest(content, _md5).digest()

    return _publish(url, _Content(copy, upload, digest), exclusive=exclusive)


def publish_bytes(data: bytes, url: str, *, exclusive: bool) -> bool:
    """`publish_file` for content in memory."""

    def copy(file: BinaryIO) -> None:
        file.write(data)

    def upload(filesystem: Any, path: str, **options: Any) -> None:
        filesystem.pipe_file(path, data, **options)

    return _publish(url, _Content(copy, upload, lambda: _md5(data).digest()), exclusive=exclusive)


@dataclass(frozen=True)
class _Content:
    """What is published, as the ways of publishing it need it."""

    copy: Callable[[BinaryIO], None]  # into an open local file
    upload: Callable[..., None]  # to (filesystem, path, **options of the filesystem)
    digest: Callable[[], bytes]  # MD5


def _md5(data: bytes = b"") -> Any:
    # The only checksum that every S3 store takes; it is not there for security.
    return hashlib.md5(data, usedforsecurity=False)


def _publish(url: str, content: _Content, *, exclusive: bool) -> bool:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _publish_locally(path, exclusive=exclusive, write=content.copy)
    if is_s3(filesystem):
        writer, digest = secrets.token_hex(16), content.digest()

        def put() -> bool:
            return _put(filesystem, path, content.upload, digest=digest, writer=writer, exclusive=exclusive)

        return retry.call(put, url=url)
    return retry.call(
        lambda: _upload_and_move(filesystem, path, content.upload, exclusive=exclusive), url=url
    )


def _publish_locally(path: str, *, exclusive: bool, write: Callable[[BinaryIO], None]) -> bool:
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    if exclusive and os.path.exists(path):
        return False
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            os.replace(temporary, path)
        elif not _link(temporary, path):
            return False
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    _sync_directory(directory)
    return True


def _link(temporary: str, path: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not os.path.exists(path):
            # Else everybody would take it for a file that somebody else had written.
            raise mark_outside_cause(
                local.broken_link_error({"name": path, "destination": os.readlink(path)})
            ) from None
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # The best such a mount offers. The file still appears whole; only two writers of the same instant are
        # not told apart, and they write the same bytes wherever this program publishes exclusively.
        if os.path.exists(path):
            return False
        os.rename(temporary, path)
    return True


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(
    filesystem: Any,
    path: str,
    upload: Callable[..., None],
    *,
    digest: bytes,
    writer: str,
    exclusive: bool,
) -> bool:
    options = {
        # So that a browser shows a report instead of saving it.
        "ContentType": mimetypes.guess_type(path)[0] or "application/octet-stream",
        # Made from our content before any library had it. Means nothing to a multipart upload, and is dropped there.
        "ContentMD5": base64.b64encode(digest).decode("ascii"),
    }
    if not exclusive:
        upload(filesystem, path, **options)
        return True
    try:
        # s3fs and botocore retry inside, so a PUT whose answer got lost can come back as "exists already".
        # The writer's mark on the object tells whose it is; equal bytes would not, since every writer has
        # those.
        upload(filesystem, path, mode="create", Metadata={"writer": writer}, **options)
    except OSError as error:
        if not (isinstance(error, FileExistsError) or http_status(error) == 412):
            raise
        if filesystem.metadata(path).get("writer") != writer:
            return False
    _check_arrived(filesystem, path, digest=digest, writer=writer)
    return True


def _check_arrived(filesystem: Any, path: str, *, digest: bytes, writer: str) -> None:
    """Raise OSError, one that may pass, where the object of this `writer` has other content, and remove it."""
    found = filesystem.info(path)
    if str(found.get("ETag") or "").strip('"') == digest.hex():
        return
    if _digest_of_object(filesystem, path, int(found["size"])) == digest:
        return
    if filesystem.metadata(path).get("writer") == writer:
        filesystem.rm_file(path)
    raise OSError("the object that arrived is not the file that was sent")


def _digest_of_object(filesystem: Any, path: str, size_bytes: int) -> bytes:
    found = _md5()
    for start in range(0, size_bytes, _READ_BYTES):
        found.update(filesystem.cat_file(path, start=start, end=min(start + _READ_BYTES, size_bytes)))
    return found.digest()


def _upload_and_move(filesystem: Any, path: str, upload: Callable[..., None], *, exclusive: bool) -> bool:
    if exclusive and filesystem.exists(path):
        return False
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.{secrets.token_hex(8)}.tmp"
    filesystem.makedirs(directory, exist_ok=True)
    try:
        upload(filesystem, temporary)
        _move(filesystem, temporary, path)
    except BaseException:
        if filesystem.exists(temporary):
            filesystem.rm_file(temporary)
        raise
    return True


def _move(filesystem: Any, source: str, target: str) -> None:
    if any(sign in source for sign in "*?["):
        # `mv` would take the name for a pattern. Only file servers rename in one step, and by `mv` alone.
        filesystem.cp_file(source, target)
        filesystem.rm_file(source)
    else:
        filesystem.mv(source, target)
