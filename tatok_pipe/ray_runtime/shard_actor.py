"""The Ray actor that does shards."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from tatok_pipe.ray_runtime.actor_plan import ActorPlan
from tatok_pipe.ray_runtime.metrics import WorkerMetrics
from tatok_pipe.runs.activity import WorkerStatus
from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER
from tatok_pipe.runs.shard_work import ShardJob, ShardResult

# Shards have threads of their own, so that a question of the driver is answered while they run.
CONCURRENCY_GROUPS = {"shards": SHARDS_PER_WORKER, "control": 1}


@dataclass(frozen=True)
class ActorStart:
    """An actor's first word. With an `error` it can do no shard."""

    node_id: str
    pid: int
    error: str = ""


class ShardActor:
    """A ShardWorker in a process of its own. An exception of its constructor would not tell the driver which
    node is at fault, so `start` says it."""

    def __init__(self, job: ShardJob, plan: ActorPlan) -> None:
        self._error = ""
        try:
            self._worker = job.start_worker(device=plan.device, num_threads=max(1, int(plan.cpus)))
        except Exception as error:
            self._error = " ".join(str(error).split()) or type(error).__name__
            return
        self._metrics = WorkerMetrics(job.entry)

    def start(self) -> ActorStart:
        return ActorStart(ray.get_runtime_context().get_node_id(), os.getpid(), self._error)

    def work(self, url: str, max_tries: int) -> ShardResult:
        return self._worker(url, max_tries=max_tries)

    def stop_taking(self) -> None:
        """Shards whose turn has not come come back not begun."""
        self._worker.stop_taking()

    def report(self) -> WorkerStatus:
        """How far it is, which goes to Ray's metrics too."""
        status = self._worker.activity.status
        self._metrics.update(status)
        return status
