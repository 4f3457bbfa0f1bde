"""The actors of a run: started, counted, watched, let go. Which shard goes where is decided elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import ray.exceptions

from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.actor_plan import ActorPlan, plan_actors
from tatok_pipe.ray_runtime.cluster import leaving_nodes
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.ray_runtime.shard_actor import CONCURRENCY_GROUPS, ActorStart, ShardActor
from tatok_pipe.runs.activity import ShardStatus, WorkerStatus
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.runs.shard_work import ShardJob

logger = logging.getLogger(__name__)

_REPLAN_EVERY_S = 10.0  # where the number of actors follows the cluster
# An actor that cannot start says so, or dies of it: three in a row while there is none that can are no accident.
_MAX_START_FAILURES = 3
_RESTART_PAUSE_S = 5.0


@dataclass(eq=False)
class Worker:
    """An actor, and what is known of it."""

    name: str
    handle: Any
    node_id: str = ""  # empty until it is ready
    is_leaving: bool = False  # its node is; it gets no more shards
    shards: dict[str, ShardStatus] = field(default_factory=dict)  # the last word on each, by URL
    reported_s: float = field(default_factory=time.monotonic)  # when its last report was heard
    blamed: set[str] | None = None  # the shards for which we ended it, where they can be told apart
    blame: str = ""  # why we ended it; empty: we did not

    @property
    def is_ready(self) -> bool:
        return bool(self.node_id)

    @property
    def can_take(self) -> bool:
        return self.is_ready and not self.is_leaving and not self.blame

    def begin(self, shard: str, *, max_tries: int) -> Any:
        """The reference of the ShardResult to come."""
        return self.handle.work.options(concurrency_group="shards").remote(shard, max_tries)

    def stop_taking(self) -> None:
        """What it has not begun comes back."""
        self.handle.stop_taking.options(concurrency_group="control").remote()

    def ask(self) -> Any:
        """The reference of the WorkerStatus to come."""
        return self.handle.report.options(concurrency_group="control").remote()

    def hear(self, status: WorkerStatus) -> None:
        """Take note of a report. What it does not speak of any more is through, and its answer on the way."""
        self.reported_s = time.monotonic()
        self.shards |= {shard.url: shard for shard in status.shards}

    def find_hung(self, held: Collection[str], limits: FailuresConfig) -> dict[str, str]:
        """Those of the shards it holds that hold it up, with the reason."""
        silent_s = time.monotonic() - self.reported_s
        hung: dict[str, str] = {}
        for shard in (self.shards[url] for url in held if url in self.shards):
            if not shard.is_working:
                continue
            work_s, idle_s = shard.work_s + silent_s, shard.idle_s + silent_s
            if work_s > limits.shard_timeout_s:
                hung[shard.url] = f"in work for {work_s:.0f} s, more than failures.shard_timeout_s"
            elif idle_s > limits.stall_s:
                hung[shard.url] = f"no progress for {idle_s:.0f} s, more than failures.stall_s"
        # Without a word from the process there is no telling which of them it is.
        if held and not hung and silent_s > limits.stall_s:
            hung = dict.fromkeys(held, f"its actor gave no sign of life for {silent_s:.0f} s")
        return hung

    def kill(self, hung: dict[str, str], held: Collection[str]) -> None:
        """End the process because of these shards."""
        is_told_apart = len(hung) < len(held) or len(held) == 1
        self.blamed = set(hung) if is_told_apart else None
        self.blame = next(iter(hung.values()))
        ray.kill(self.handle)


class WorkerPool:
    """As many actors as there is work for, within the plan."""

    def __init__(self, job: ShardJob, config: ActorsConfig, *, num_shards: int) -> None:
        self.plan: ActorPlan = plan_actors(config, num_shards=num_shards)
        self.workers: dict[str, Worker] = {}
        self.starts: dict[Any, Worker] = {}  # by the reference of its ActorStart
        self._job = job
        self._config = config
        self._num_shards = num_shards
        self._num_started = 0
        self._start_failures = 0
        self._next_start_s = 0.0
        self._replanned_s = time.monotonic()
        self._asked: dict[Any, Worker] = {}  # who has a question to answer, by its reference
        remote: Any = ray.remote
        self._actor_class = remote(
            num_cpus=self.plan.cpus,
            num_gpus=self.plan.gpus,
            memory=self.plan.memory_bytes or None,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups=CONCURRENCY_GROUPS,
        )(ShardActor)

    @property
    def ready(self) -> list[Worker]:
        """Those that can be given shards."""
        return [worker for worker in self.workers.values() if worker.can_take]

    @property
    def num_ready(self) -> int:
        return sum(worker.is_ready for worker in self.workers.values())

    @property
    def num_staying(self) -> int:
        """Actors that are there or were asked for, but for those whose node is leaving."""
        return sum(not worker.is_leaving for worker in self.workers.values())

    def num_wanted(self, num_left: int) -> int:
        """Actors that there should be for so many shards that are not through."""
        return min(self.plan.max, max(num_left, self.plan.min))

    def resize(self, *, num_left: int, num_waiting: int, busy: Collection[str]) -> None:
        """Start actors while shards are waiting, and let idle ones go when none are. `busy` hold shards."""
        now = time.monotonic()
        if self._config.max is None and now - self._replanned_s >= _REPLAN_EVERY_S:
            self._replanned_s = now
            self._replan()
        wanted = self.num_wanted(num_left)
        staying = [worker for worker in self.workers.values() if not worker.is_leaving]
        if num_waiting and now >= self._next_start_s:
            for _ in range(wanted - len(staying)):
                self._start()
        elif not num_waiting:
            idle = [worker for worker in staying if worker.is_ready and worker.name not in busy]
            for worker in idle[: max(0, len(staying) - wanted)]:
                self.dismiss(worker)

    def _replan(self) -> None:
        """The cluster may have got more nodes, or fewer. The size of an actor stays what it was."""
        same_size = replace(self._config, cpus=self.plan.cpus, gpus=self.plan.gpus)
        try:
            self.plan = plan_actors(same_size, num_shards=self._num_shards)
        except UserError:
            return  # no room at the moment; the actors asked for wait for some

    def _start(self) -> None:
        self._num_started += 1
        name = f"actor {self._num_started}"
        worker = Worker(name, self._actor_class.remote(self._job, self.plan))
        self.workers[name] = worker
        self.starts[worker.handle.start.options(concurrency_group="control").remote()] = worker

    def take_start(self, reference: Any) -> None:
        """An actor has started, or not. Raises UserError where it seems that none can."""
        worker = self.starts.pop(reference)
        try:
            start: ActorStart = ray.get(reference)
            error = start.error
        except ray.exceptions.RayError as death:
            start, error = ActorStart("", 0), " ".join(str(death).split())[:300]
        if not error:
            worker.node_id, worker.reported_s = start.node_id, time.monotonic()
            self._start_failures = 0
            return
        self.dismiss(worker)
        self._start_failures += 1
        self._next_start_s = time.monotonic() + _RESTART_PAUSE_S
        logger.warning("%s cannot start: %s", worker.name, error)
        if self._start_failures >= _MAX_START_FAILURES and not self.num_ready:
            raise UserError(f"no actor can start, {self._start_failures} tried: {error}")

    def look(self, busy: Collection[str]) -> None:
        """Read what the actors say, and let go of nodes that are leaving."""
        self._read_reports()
        leaving = leaving_nodes()
        for worker in list(self.workers.values()):
            if worker.node_id in leaving and not worker.is_leaving:
                logger.warning("%s: its node is leaving; it takes no more shards", worker.name)
                worker.is_leaving = True
                worker.stop_taking()
            if worker.is_leaving and worker.name not in busy:
                self.dismiss(worker)

    def _read_reports(self) -> None:
        """Hear those who have answered, and ask them again: an actor that is silent is asked once."""
        if self._asked:
            for reference in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0]:
                worker = self._asked.pop(reference)
                # Where its process is gone the answers of its shards tell that.
                with suppress(ray.exceptions.RayError):
                    worker.hear(ray.get(reference))
        asked = {worker.name for worker in self._asked.values()}
        for worker in self.workers.values():
            if worker.is_ready and worker.name not in asked:
                self._asked[worker.ask()] = worker

    def dismiss(self, worker: Worker) -> None:
        """End an actor whose shards are settled, or that is dead already."""
        self.workers.pop(worker.name, None)
        for told in (self.starts, self._asked):
            for reference in [reference for reference, other in told.items() if other is worker]:
                del told[reference]
        ray.kill(worker.handle)

    def close(self) -> None:
        for worker in list(self.workers.values()):
            self.dismiss(worker)
