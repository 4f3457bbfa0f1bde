"""Folders on this machine's disk for a while: gone when their block ends, and those of killed processes when another
process makes its first one.

Each holds a locked file, and the system unlocks what a process had locked, however it ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_PREFIX = "tatok-"
_LOCK_FILE = ".lock"
_YOUNG_S = 60.0  # a folder may not be locked yet by the process that made it


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A new folder below TMPDIR, to be written by this process alone. Raises OSError where there can be none."""
    _remove_abandoned(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX) as folder,
        open(os.path.join(folder, _LOCK_FILE), "wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@cache  # once for each process, which may make many
def _remove_abandoned(parent: str) -> None:
    now = time.time()
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and _is_abandoned(entry, now):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(entry: os.DirEntry[str], now: float) -> bool:
    """Whether a folder is ours, and nobody's any more. What cannot be told stays."""
    try:
        status = entry.stat(follow_symlinks=False)
        is_ours = entry.is_dir(follow_symlinks=False) and status.st_uid == os.getuid()
        if not is_ours or now - status.st_mtime < _YOUNG_S:
            return False
        with open(os.path.join(entry.path, _LOCK_FILE), "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
