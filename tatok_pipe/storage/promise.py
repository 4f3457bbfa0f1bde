"""Whether a store keeps what a commit rests on: that of two writers of one file the second is refused."""

from __future__ import annotations

import os
import secrets
import tempfile
from typing import Any

from tatok_pipe.storage import retry
from tatok_pipe.storage.object_store import ObjectStore, object_store
from tatok_pipe.storage.publish import NO_HARD_LINKS, outside
from tatok_pipe.storage.urls import is_local, join, open_filesystem, redact

_PROBE = ".tatok-probe-"


def find_broken_promise(url: str) -> str:
    """What is not promised of exclusive publications below the folder `url`, as one line; empty where all is.

    Tried on this very store with a small file, hidden and removed at once, since servers that speak alike do not act
    alike. Raises OSError where the store takes nothing at all.
    """
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        reason = retry.call(lambda: _try_hard_link(path), url=url)
    elif (store := object_store(filesystem, path)) is None:
        reason = "has no way to create a file only where none is there"
    else:
        probe_url = join(url, _PROBE + secrets.token_hex(8))
        probe_path = open_filesystem(probe_url)[1]
        reason = retry.call(lambda: _try_two_creates(store, filesystem, probe_path), url=probe_url)
    if not reason:
        return ""
    return (
        f"{redact(url)}: this store {reason}, so not promised here: that of two jobs at once on this output one alone "
        "wins each shard; run one job at a time on it"
    )


def _try_two_creates(store: ObjectStore, filesystem: Any, path: str) -> str:
    try:
        keeps_condition = store.keeps_condition(filesystem, path)
    finally:
        if store.look(filesystem, path) is not None:
            filesystem.rm_file(path)
    if keeps_condition:
        return ""
    return "let a second writer replace the file of the first (it ignores the condition of the request)"


def _try_hard_link(directory: str) -> str:
    with outside():
        os.makedirs(directory, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=_PROBE) as first:
        second = f"{first.name}-2"
        try:
            os.link(first.name, second)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            return "has no hard links"
        os.unlink(second)
    return ""
