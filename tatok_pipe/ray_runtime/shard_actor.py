"""The Ray actor that does shards."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

from tatok_pipe.ray_runtime.actor_plan import ActorPlan
from tatok_pipe.ray_runtime.metrics import WorkerMetrics
from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER
from tatok_pipe.runs.shard_work import ShardJob, ShardResult

REPORT_EVERY_S = 1.0
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

    def __init__(self, job: ShardJob, plan: ActorPlan, name: str, board: Any) -> None:
        self._name = name
        self._board = board
        self._error = ""
        try:
            self._worker = job.start_worker(device=plan.device, num_threads=max(1, int(plan.cpus)))
        except Exception as error:
            self._error = " ".join(str(error).split()) or type(error).__name__
            return
        threading.Thread(target=self._report, args=(job.entry,), name="report", daemon=True).start()

    def start(self) -> ActorStart:
        return ActorStart(ray.get_runtime_context().get_node_id(), os.getpid(), self._error)

    def work(self, url: str, max_tries: int) -> ShardResult:
        return self._worker(url, max_tries=max_tries)

    def stop_taking(self) -> None:
        """Shards whose turn has not come come back not begun."""
        self._worker.stop_taking()

    def _report(self, entry: str) -> None:
        metrics = WorkerMetrics(entry)
        number = 0
        while True:
            number += 1
            status = self._worker.activity.status
            self._board.report.remote(self._name, number, status)
            metrics.update(status)
            time.sleep(REPORT_EVERY_S)
