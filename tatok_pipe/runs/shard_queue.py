"""Which shard a worker gets next, and what becomes of the shards of a worker that died. Decisions only.

A worker may hold several shards (one it works on, the next one's bytes on their way), so when its process dies it
is not known which of them killed it. Each of them is then *suspect*: it is tried again alone, on a worker that has
nothing else, so that a neighbour of a poisonous shard is never blamed for it twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from tatok_pipe.config.options import config_dataclass, option

# One shard in work and one whose first bytes are being fetched: the device never waits for a shard's beginning.
SHARDS_PER_WORKER = 2


@config_dataclass
class FailuresConfig:
    max_failed_shards: int | None = option(
        None,
        at_least=0,
        help="failed shards that are tolerated: the run ends with exit code 0 up to this number, and stops when one "
        "more fails; null: everything else is done, and any failed shard gives exit code 1",
        unit="shards",
    )
    max_attempts: int = option(
        3,
        at_least=1,
        help="times that a shard may lose its actor's process before it counts as failed",
        unit="attempts per shard",
    )
    stall_s: float = option(
        600.0,
        above=0,
        help="a shard without any progress for so long costs its actor's process",
        unit="seconds",
    )
    shard_timeout_s: float = option(
        14_400.0,
        above=0,
        help="a shard that is in work for so long costs its actor's process",
        unit="seconds per attempt",
    )
    stop_grace_s: float = option(
        20.0,
        at_least=0,
        help="after SIGTERM or Ctrl-C no shard is begun, and those in work have so long to finish; a second signal "
        "stops at once",
        unit="seconds",
    )


class ShardQueue:
    """The shards of a run until they are done. `worker` is any hashable name; nothing here knows processes."""

    def __init__(self, shards: Sequence[str], *, max_attempts: int) -> None:
        self._waiting = deque(shards)
        self._suspects: deque[str] = deque()
        self._held: dict[str, list[str]] = {}  # worker -> its shards, in the order they were given
        self._alone: set[str] = set()  # workers that hold a suspect
        self._attempts: dict[str, int] = {}  # shards that lost a worker -> tries in it
        self._max_attempts = max_attempts

    @property
    def num_waiting(self) -> int:
        """Shards that no worker holds."""
        return len(self._waiting) + len(self._suspects)

    @property
    def num_held(self) -> int:
        return sum(map(len, self._held.values()))

    @property
    def workers(self) -> set[str]:
        """Those that hold shards."""
        return {worker for worker, held in self._held.items() if held}

    def held_by(self, worker: str) -> list[str]:
        return list(self._held.get(worker, ()))

    def attempts(self, shard: str) -> int:
        """How often the shard was tried in workers that it, or a shard beside it, has cost."""
        return self._attempts.get(shard, 0)

    def take(self, worker: str, *, num_workers: int) -> str | None:
        """The next shard for `worker`, one of `num_workers` that are there or coming; None where it should have no
        more now.

        A second shard is given ahead only while every worker will have one more to do: near the end, and in a run of
        few shards at the start, it would wait behind a straggler while others are idle.
        """
        held = self._held.setdefault(worker, [])
        if worker in self._alone or len(held) >= SHARDS_PER_WORKER:
            return None
        if not held and self._suspects:
            shard = self._suspects.popleft()
            self._alone.add(worker)
        elif self._waiting and (not held or len(self._waiting) >= num_workers):
            shard = self._waiting.popleft()
        else:
            return None
        held.append(shard)
        return shard

    def finish(self, worker: str, shard: str) -> None:
        """The worker is through with the shard, well or not."""
        self._held[worker].remove(shard)
        self._alone.discard(worker)

    def give_back(self, worker: str, shard: str) -> None:
        """The worker did not begin the shard, or lost it by no fault of its own: it is the next one again."""
        self.finish(worker, shard)
        (self._suspects if self.attempts(shard) else self._waiting).appendleft(shard)

    def lose(
        self, worker: str, *, blamed: Iterable[str] | None, tries: Mapping[str, int] | None = None
    ) -> list[str]:
        """The worker's process is gone. Returns the shards that have used up their attempts.

        `blamed` are the shards known to be the cause: empty where the machine went away, None where it may be any
        that the worker held. The others go back untouched. `tries` is how often the process had begun a shard:
        what it tried again by itself counts too.
        """
        held = self._held.pop(worker, [])
        self._alone.discard(worker)
        guilty = set(held if blamed is None else blamed)
        is_certain = blamed is not None or len(held) == 1
        exhausted = []
        for shard in reversed(held):
            if shard not in guilty:
                (self._suspects if self.attempts(shard) else self._waiting).appendleft(shard)
                continue
            self._attempts[shard] = self.attempts(shard) + max(1, (tries or {}).get(shard, 1))
            if is_certain and self._attempts[shard] >= self._max_attempts:
                exhausted.append(shard)
            else:
                self._suspects.append(shard)
        return exhausted
