"""Stores that take an object whole or not at all, and that can be told to take it only where none is there: S3, Google,
Azure, repositories of the Hugging Face hub and fsspec's memory. What each wants to be told, and what it tells of an
object.

Some servers that speak like one of these ignore the condition: see `promise`.
"""

from __future__ import annotations

import base64
import mimetypes
import secrets
import threading
from typing import Any, Protocol

from fsspec.asyn import sync

from tatok_pipe.storage import hub
from tatok_pipe.storage.faults import http_status
from tatok_pipe.storage.hub_commits import Repositories
from tatok_pipe.storage.published import Content, Found, new_hasher
from tatok_pipe.storage.urls import speaks

_PART_BYTES = 50 << 20
# Every store that knows conditional PUT decides a race of PUTs. Of multipart completions some check the
# condition and write in two steps (SeaweedFS 4.48: up to three of three racers told 200), so an exclusive
# file is one PUT up to twice this size, although that holds it in memory; a token shard has a few MiB.
_EXCLUSIVE_PART_BYTES = 512 << 20


class ObjectStore(Protocol):
    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        """Write the object, marked as this `writer`'s. False where the store refuses since one is there: that may be
        our own, whose answer was lost on the way, for drivers ask again by themselves."""
        ...

    def replace(self, filesystem: Any, path: str, content: Content) -> None: ...

    def look(self, filesystem: Any, path: str) -> Found | None:
        """None where there is no object."""
        ...

    def keeps_condition(self, filesystem: Any, path: str) -> bool:
        """Whether of two creations of the object the second is refused, tried where none is; one is there then."""
        ...


def object_store(filesystem: Any, path: str) -> ObjectStore | None:
    """How the store behind `filesystem` that `path` is in is asked; None where it is none of these."""
    if speaks(filesystem, "hf"):
        return _REPOSITORIES if hub.is_repository(filesystem, path) else None
    return next((store for protocol, store in _STORES.items() if speaks(filesystem, protocol)), None)


def _content_type(path: str) -> str:
    # So that a browser shows a report instead of saving it.
    return mimetypes.guess_type(path)[0] or "application/octet-stream"


class _OneRequest:
    """A store whose `create` is one request, with the condition in it."""

    def keeps_condition(self: ObjectStore, filesystem: Any, path: str) -> bool:
        refused = [
            not self.create(filesystem, path, Content(data=data), writer=secrets.token_hex(16))
            for data in (b"first", b"second")
        ]
        return refused[1] and filesystem.cat_file(path) == b"first"


class _S3(_OneRequest):
    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        options = self._options(path, content, _EXCLUSIVE_PART_BYTES)
        try:
            content.upload(filesystem, path, mode="create", Metadata={"writer": writer}, **options)
        except OSError as error:
            if not (isinstance(error, FileExistsError) or http_status(error) == 412):
                raise
            return False
        return True

    def replace(self, filesystem: Any, path: str, content: Content) -> None:
        content.upload(filesystem, path, **self._options(path, content, _PART_BYTES))

    def look(self, filesystem: Any, path: str) -> Found | None:
        bucket, key, _ = filesystem.split_path(path)
        try:
            found: Any = sync(
                filesystem.loop,
                filesystem._call_s3,
                "head_object",
                Bucket=bucket,
                Key=key,
                **filesystem.req_kw,
            )
        except FileNotFoundError:
            return None
        tag = str(found.get("ETag") or "").strip('"')
        return Found(int(found["ContentLength"]), tag, found.get("Metadata", {}).get("writer", ""))

    @staticmethod
    def _options(path: str, content: Content, part_bytes: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "ContentType": _content_type(path),
            # Made from our content before any library had it. Means nothing to a multipart upload, and is dropped.
            "ContentMD5": base64.b64encode(content.digest()).decode("ascii"),
        }
        if content.data is None:
            options["chunksize"] = content.part_bytes or part_bytes
        return options


class _Google(_OneRequest):
    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        try:
            filesystem.pipe_file(
                path,
                content.read(),
                mode="create",  # ifGenerationMatch=0
                metadata={"writer": writer},
                content_type=_content_type(path),
                chunksize=_EXCLUSIVE_PART_BYTES,
            )
        except FileExistsError:
            return False
        return True

    def replace(self, filesystem: Any, path: str, content: Content) -> None:
        content.upload(filesystem, path, content_type=_content_type(path))

    def look(self, filesystem: Any, path: str) -> Found | None:
        try:
            found = filesystem.info(path)
        except FileNotFoundError:
            return None
        digest = base64.b64decode(found.get("md5Hash") or "").hex()
        return Found(int(found["size"]), digest, (found.get("metadata") or {}).get("writer", ""))


class _Azure(_OneRequest):
    # By adlfs's client: adlfs itself sets the metadata, and so leaves no room for the writer's mark.
    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        from azure.core.exceptions import ResourceExistsError

        try:
            # Without `overwrite` with If-None-Match: *
            self._upload(filesystem, path, content, overwrite=False, writer=writer)
        except ResourceExistsError:
            return False
        return True

    def replace(self, filesystem: Any, path: str, content: Content) -> None:
        self._upload(filesystem, path, content, overwrite=True)

    def look(self, filesystem: Any, path: str) -> Found | None:
        from azure.core.exceptions import ResourceNotFoundError

        async def ask() -> Any:
            async with self._blob(filesystem, path) as blob:
                return await blob.get_blob_properties()

        try:
            found: Any = sync(filesystem.loop, ask)
        except ResourceNotFoundError:
            return None
        digest = bytes(found.content_settings.content_md5 or b"").hex()
        return Found(found.size, digest, (found.metadata or {}).get("writer", ""))

    def _upload(
        self, filesystem: Any, path: str, content: Content, *, overwrite: bool, writer: str = ""
    ) -> None:
        from azure.storage.blob import ContentSettings

        async def upload() -> None:
            async with self._blob(filesystem, path) as blob:
                with content.open() as file:
                    await blob.upload_blob(
                        file,
                        length=content.size_bytes,
                        overwrite=overwrite,
                        # As adlfs marks what is no folder.
                        metadata={"is_directory": "false"} | ({"writer": writer} if writer else {}),
                        content_settings=ContentSettings(content_type=_content_type(path)),
                    )

        sync(filesystem.loop, upload)

    @staticmethod
    def _blob(filesystem: Any, path: str) -> Any:
        container, name, _ = filesystem.split_path(path)
        return filesystem.service_client.get_blob_client(container=container, blob=name)


class _Memory(_OneRequest):
    # The driver looks and then writes.
    _lock = threading.Lock()

    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        data = content.read()
        with self._lock:
            if filesystem.exists(path):
                return False
            filesystem.pipe_file(path, data)
        return True

    def replace(self, filesystem: Any, path: str, content: Content) -> None:
        data = content.read()
        with self._lock:
            filesystem.pipe_file(path, data)

    def look(self, filesystem: Any, path: str) -> Found | None:
        try:
            data = filesystem.cat_file(path)
        except FileNotFoundError:
            return None
        hasher = new_hasher("md5", len(data))
        hasher.update(data)
        return Found(len(data), hasher.hexdigest(), "")


_STORES: dict[str, ObjectStore] = {"s3": _S3(), "gs": _Google(), "abfs": _Azure(), "memory": _Memory()}
_REPOSITORIES = Repositories()
