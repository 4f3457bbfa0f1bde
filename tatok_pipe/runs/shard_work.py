"""What a run of shards asks of whoever does a shard, and what it is told. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.notices import Notice
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.runs.activity import Activity


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard. `error` is empty where it is committed, by this attempt or by another one."""

    url: str
    error: str = ""
    num_images: int = 0
    num_tokens: int = 0
    num_quarantined: int = 0
    bytes_in: int = 0  # of the shard that was read
    bytes_out: int = 0  # of the shard that was written
    seconds: float = 0.0
    notices: tuple[Notice, ...] = ()  # what its user ought to know
    refusals: tuple[Notice, ...] = ()  # quarantine rows, by their error class
    was_begun: bool = True  # False where the worker was told to stop before the shard's turn came


class ShardWorker(Protocol):
    """Does shards on a device. Called from several threads at once, one shard each."""

    activity: Activity

    def __call__(self, url: str, *, max_tries: int) -> ShardResult:
        """Do a shard and commit it. An error of the shard is a result; nothing is raised for it."""
        ...

    def stop_taking(self) -> None:
        """Shards whose turn has not come come back at once, not begun."""
        ...


class ShardJob(Protocol):
    """What every shard of a run has in common. Small, and the same on every actor."""

    entry: ClassVar[str]  # whose run it is; a label of its metrics

    def start_worker(self, *, device: str, num_threads: int) -> ShardWorker:
        """Load what it takes. Raises where that cannot be done on this machine."""
        ...


def describe_error(error: BaseException) -> str:
    """One line; the class is named where the text alone would not say what happened."""
    text = " ".join(storage.redact(str(error)).split())
    if isinstance(error, (ShardError, OSError, UserError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
