"""How a repository of the Hugging Face hub is told to take a file only where none is there.

A commit that names its parent the hub makes only where that is still the head of the branch (`parent_commit`). So a
file is created by a commit onto a head that has none of its name; where any other commit comes in between, it is tried
again onto the new head.
"""

from __future__ import annotations

import random
import re
import time
from typing import Any

from tatok_pipe.storage import hub
from tatok_pipe.storage.faults import LastingError, http_status
from tatok_pipe.storage.published import Content, Found

# Every time that a writer has to begin again another one has got through, so that it takes about as many attempts as
# there are writers.
_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 4.0
_NOT_THE_HEAD = 412
_MARK = re.compile(r"\[([0-9a-f]{32})\]$")
_MAX_NAME = 60  # characters of it in the title of a commit


class Repositories:
    """See `object_store.ObjectStore`. The writer's mark is in the title of the commit."""

    def create(self, filesystem: Any, path: str, content: Content, *, writer: str) -> bool:
        place = _writable_place(filesystem, path)
        attempts = _Attempts(filesystem, place, content)
        while True:
            operation = attempts.next_operation()
            head = _head(filesystem, place)
            if hub.find(filesystem, place, revision=head) is not None:
                return False
            if attempts.commit(operation, title=_title(place, writer), parent=head):
                return True

    def replace(self, filesystem: Any, path: str, content: Content) -> None:
        place = _writable_place(filesystem, path)
        attempts = _Attempts(filesystem, place, content)
        # Of two commits at one instant the hub may refuse one, though it names no parent.
        while not attempts.commit(attempts.next_operation(), title=_title(place, "")):
            pass

    def look(self, filesystem: Any, path: str) -> Found | None:
        place = _writable_place(filesystem, path)
        found = hub.find(filesystem, place, revision=place.revision, is_expanded=True)
        if found is None or not hasattr(found, "blob_id"):
            return None
        mark = _MARK.search(found.last_commit.title if found.last_commit else "")
        writer = mark[1] if mark else ""
        if found.lfs is not None:
            return Found(found.size, found.lfs.sha256, writer, "sha256")
        return Found(found.size, found.blob_id, writer, "git")

    def keeps_condition(self, filesystem: Any, path: str) -> bool:
        """Here the second one commits onto what was the head before the first had."""
        place = _writable_place(filesystem, path)
        writers = [_Attempts(filesystem, place, Content(data=data)) for data in (b"first", b"second")]
        while True:
            operations = [writer.next_operation() for writer in writers]
            head = _head(filesystem, place)
            first, second = (
                writer.commit(operation, title=_title(place, ""), parent=head)
                for writer, operation in zip(writers, operations, strict=True)
            )
            if first:
                return not second


class _Attempts:
    """Commits of one file, until one is made."""

    def __init__(self, filesystem: Any, place: Any, content: Content) -> None:
        self._api = hub.make_api(filesystem)
        self._place, self._content = place, content
        self._num_begun = 0
        self._deadline = time.monotonic() + _PATIENCE_S

    def next_operation(self) -> Any:
        """The file, uploaded, after a pause where an attempt has failed. Raises OSError, one that may pass."""
        from huggingface_hub import CommitOperationAdd, constants
        from huggingface_hub.utils import disable_progress_bars

        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()  # one a file, in the log of a run
        if self._num_begun:
            if time.monotonic() > self._deadline:
                raise OSError(f"other commits came first, {self._num_begun} times")
            pause_s = min(_FIRST_PAUSE_S * 2**self._num_begun, _MAX_PAUSE_S)
            time.sleep(pause_s * random.uniform(0.2, 1.0))
        self._num_begun += 1
        content = self._content
        operation = CommitOperationAdd(
            self._place.path_in_repo, content.local_path if content.data is None else content.data
        )
        self._api.preupload_lfs_files(
            self._place.repo_id,
            [operation],
            repo_type=self._place.repo_type,
            revision=self._place.revision,
            free_memory=False,
        )
        return operation

    def commit(self, operation: Any, *, title: str, parent: str | None = None) -> bool:
        """False where the hub refuses since another commit came first.

        Of a file that the client, when it was uploaded, saw to be there with this very content no commit is made.
        """
        try:
            self._api.create_commit(
                self._place.repo_id,
                [operation],
                commit_message=title,
                repo_type=self._place.repo_type,
                revision=self._place.revision,
                parent_commit=parent,
            )
        except OSError as error:
            if http_status(error) != _NOT_THE_HEAD:
                raise
            return False
        return True


def _writable_place(filesystem: Any, path: str) -> Any:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return filesystem.resolve_path(path)
    except FileNotFoundError as error:
        if type(error.__cause__) is not RepositoryNotFoundError:  # not one of its kind that is gated
            raise
        name = "/".join(path.split("/")[1:3]).partition("@")[0]
        raise LastingError(
            f"{filesystem.endpoint} has no such repository, or one that is private; check the name and HF_TOKEN, or "
            f"make it: hf repos create {name} --type dataset --private"
        ) from None


def _head(filesystem: Any, place: Any) -> str:
    from huggingface_hub import constants

    told = hub.make_api(filesystem).repo_info(
        place.repo_id,
        revision=place.revision,
        repo_type=place.repo_type,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    return told.sha


def _title(place: Any, writer: str) -> str:
    name = place.path_in_repo.rpartition("/")[2][:_MAX_NAME]
    return f"Write {name}" + (f" [{writer}]" if writer else "")
