"""Publishing a finished file in one step: nobody ever sees a part of it, and of several writers one wins."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tatok_pipe.errors import mark_outside_cause
from tatok_pipe.storage import hub, local, retry
from tatok_pipe.storage.files import read_range
from tatok_pipe.storage.object_store import ObjectStore, object_store
from tatok_pipe.storage.published import Content, Found, new_hasher
from tatok_pipe.storage.urls import is_local, open_filesystem

_READ_BYTES = 16 << 20
# Filesystems that cannot hard-link, or sync (some network and FUSE mounts), answer with one of these.
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


def publish_file(
    local_path: str | os.PathLike[str], url: str, *, exclusive: bool, part_bytes: int | None = None
) -> bool:
    """Make the finished local file appear at `url`, whole or not at all. True where this call created it.

    With `exclusive` a file that is there already stays untouched and the answer is False, also for all but
    one of several writers at the same time; else it is replaced and the answer is True. How:

    - local disk: a copy under a hidden temporary name in the same directory, fsync, then a hard link
      (exclusive) or a rename;
    - S3, Google, Azure and memory: one request that the store does whole or not at all, where exclusive with its
      own condition (`If-None-Match: *`, `ifGenerationMatch=0`). On S3 from two `part_bytes` (512 MiB where
      exclusive, else 50 MiB) a multipart upload with a conditional completion. Whether a store keeps the condition
      is what `promise.find_broken_promise` tries;
    - a repository of the Hugging Face hub: a commit, where exclusive onto a head that has no such file
      (`hub_commits`);
    - any other filesystem: upload under a temporary name, then move. There exclusive is a check before the
      upload, so two writers of the same instant may both be told True; the last one's file stays.

    On S3 a PUT carries the Content-MD5 of the file, and the store refuses a body that arrives otherwise (each
    part of a multipart upload carries botocore's CRC32). Where exclusive nothing is left to the store's word:
    afterwards the MD5 that it tells of the object must be the content's, and where it tells none (KMS encryption,
    parts) the object is read back. What is found wrong is removed and uploaded again.

    Errors that may pass are tried again; raises OSError naming the URL where they do not.
    """
    return _publish(
        url, Content(local_path=os.fspath(local_path), part_bytes=part_bytes), exclusive=exclusive
    )


def publish_bytes(data: bytes, url: str, *, exclusive: bool) -> bool:
    """`publish_file` for content in memory."""
    return _publish(url, Content(data=data), exclusive=exclusive)


def commits_each_write(url: str) -> bool:
    """Whether every publication below `url` stays in a history: in a repository of the Hugging Face hub."""
    return hub.is_repository(*open_filesystem(url))


def _publish(url: str, content: Content, *, exclusive: bool) -> bool:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _publish_locally(path, exclusive=exclusive, write=content.copy)
    store = object_store(filesystem, path)
    if store is None:
        return retry.call(
            lambda: _upload_and_move(filesystem, path, content.upload, exclusive=exclusive), url=url
        )
    if not exclusive:
        retry.call(lambda: store.replace(filesystem, path, content), url=url)
        return True
    writer = secrets.token_hex(16)
    return retry.call(lambda: _create(store, filesystem, path, content, writer=writer), url=url)


def _publish_locally(path: str, *, exclusive: bool, write: Callable[[BinaryIO], None]) -> bool:
    directory, name = os.path.split(path)
    with outside():
        os.makedirs(directory, exist_ok=True)
    if exclusive and os.path.exists(path):
        return False
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with outside():
            file = open(temporary, "xb")  # noqa: SIM115
        with file:
            write(file)
            file.flush()
            _sync(file.fileno())
        if not exclusive:
            os.replace(temporary, path)
        elif not _link(temporary, path):
            return False
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    _sync_directory(directory)
    return True


@contextmanager
def outside() -> Iterator[None]:
    """That a file cannot be there is a matter of the place that was given, whatever the system says of it."""
    try:
        yield
    except OSError as error:
        raise mark_outside_cause(error) from None


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


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
        if error.errno not in NO_HARD_LINKS:
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
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _create(store: ObjectStore, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
    # Looked at first for the sake of stores that do not keep the condition: what is there for longer than an instant
    # is safe there too.
    found = store.look(filesystem, path)
    if found is None and store.create(filesystem, path, content, writer=writer):
        found = store.look(filesystem, path)
        if found is None:
            raise OSError("the object that was created is not there")
        if found.writer not in ("", writer):
            return False
    else:
        # A request whose answer got lost comes back as "exists already" from the next one. The writer's mark on the
        # object tells whose it is; equal bytes would not, since every writer has those.
        found = found or store.look(filesystem, path)
        if found is None or found.writer != writer:
            return False
    _check_arrived(filesystem, path, found, content, writer=writer)
    return True


def _check_arrived(filesystem: Any, path: str, found: Found, content: Content, *, writer: str) -> None:
    """Raise OSError, one that may pass, where the object has other content, and remove it if it is this `writer`'s."""
    if found.digest == content.digest(found.checksum).hex():
        return
    if _digest_of_object(filesystem, path, found.size_bytes) == content.digest():
        return
    if found.writer == writer:
        filesystem.rm_file(path)
    raise OSError("the object that arrived is not the file that was sent")


def _digest_of_object(filesystem: Any, path: str, size_bytes: int) -> bytes:
    hasher = new_hasher("md5", size_bytes)
    for start in range(0, size_bytes, _READ_BYTES):
        hasher.update(read_range(filesystem, path, start, min(start + _READ_BYTES, size_bytes)))
    return hasher.digest()


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
