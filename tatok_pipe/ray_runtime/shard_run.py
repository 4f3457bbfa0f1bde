"""The run of many shards on many actors: who gets which shard, who is gone, hung or leaving, when it is over.

Why not Ray Data: it hands out one block at a time, so an actor could not fetch the next shard while it works on
one; it has no deadline for a hung call, counts the shards beside a poisonous one as failed with it, tries a block
that kills its process without end or drops it in silence, and hangs on `sys.exit` in a call (ray#62746).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
import ray.exceptions

from tatok_pipe import storage
from tatok_pipe.ray_runtime.cluster import check_ray, has_ray_died, leaving_nodes
from tatok_pipe.ray_runtime.metrics import RunMetrics
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.ray_runtime.worker_pool import Worker, WorkerPool
from tatok_pipe.runs.progress import RunState
from tatok_pipe.runs.shard_queue import FailuresConfig, ShardQueue
from tatok_pipe.runs.shard_work import ShardJob, ShardResult
from tatok_pipe.runs.stop_signal import StopSignal

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_LOOK_EVERY_S = 1.0  # at reports, for hung shards and leaving nodes


def run_shards(
    urls: Sequence[str],
    job: ShardJob,
    actors: ActorsConfig,
    failures: FailuresConfig,
    *,
    stop: StopSignal,
    on_progress: Callable[[RunState], None],
    every_s: float,
) -> Iterator[ShardResult]:
    """Results of the shards, as they come; an actor does a whole shard and commits it. Ray must be running.
    `urls` are names to the run: what they mean is the job's business.

    A shard that cost its actor's process `failures.max_attempts` times, or is in work for too long as often, comes
    back with an error. `on_progress` is called about every `every_s` seconds. With more than
    `failures.max_failed_shards` errors, and after `stop` was requested, no shard is begun and the generator ends
    early; shards in work after `failures.stop_grace_s` are given up. Raises UserError where no actor can start.
    """
    run = _Run(urls, job, actors, failures, stop)
    try:
        shown_s, shown = time.monotonic(), run.state
        while not run.is_over:
            yield from run.step()
            if time.monotonic() - shown_s >= every_s:
                shown_s, shown = time.monotonic(), run.state
                on_progress(shown)
        if run.state != shown:
            on_progress(run.state)
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        urls: Sequence[str],
        job: ShardJob,
        actors: ActorsConfig,
        failures: FailuresConfig,
        stop: StopSignal,
    ) -> None:
        self._failures = failures
        self._stop = stop
        self._queue = ShardQueue(urls, max_attempts=failures.max_attempts)
        self._pool = WorkerPool(job, actors, num_shards=len(urls))
        self._calls: dict[Any, tuple[Worker, str]] = {}  # by the reference of the ShardResult
        self._num_shards = len(urls)
        self._num_done = self._num_failed = 0
        self._num_images = self._num_tokens = self._num_quarantined = 0  # of finished shards
        self._bytes_in = self._bytes_out = 0
        self._is_ending = False
        self._began_s: float | None = None  # when the first shard was handed out
        self._looked_s = time.monotonic()
        self._metrics = RunMetrics(job.entry)
        plan = self._pool.plan
        logger.info("%d actors, each with %g CPUs and %g GPUs", plan.max, plan.cpus, plan.gpus)

    @property
    def _num_left(self) -> int:
        return self._queue.num_waiting + self._queue.num_held

    @property
    def is_over(self) -> bool:
        if not self._queue.num_held and (self._is_ending or not self._queue.num_waiting):
            return True
        return self._stop.seconds > self._failures.stop_grace_s

    @property
    def state(self) -> RunState:
        running = [shard for worker in self._pool.workers.values() for shard in worker.shards.values()]
        return RunState(
            num_shards=self._num_shards,
            num_done=self._num_done,
            num_failed=self._num_failed,
            num_images=self._num_images + sum(shard.num_images for shard in running),
            num_tokens=self._num_tokens + sum(shard.num_tokens for shard in running),
            num_quarantined=self._num_quarantined + sum(shard.num_quarantined for shard in running),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            num_actors=self._pool.num_ready,
            num_actors_wanted=self._pool.num_wanted(self._num_left),
            share=sum(shard.share for shard in running),
            seconds=0.0 if self._began_s is None else time.monotonic() - self._began_s,
        )

    def step(self) -> Iterator[ShardResult]:
        """Hand out shards, wait a moment, and yield what has come."""
        check_ray()
        if not self._is_ending and (self._stop.is_requested or self._has_failed_too_often):
            self._end()
        waiting = 0 if self._is_ending else self._queue.num_waiting
        self._pool.resize(num_left=self._num_left, num_waiting=waiting, busy=self._queue.workers)
        if not self._is_ending:
            self._hand_out()
        references = [*self._calls, *self._pool.starts]
        if references:
            ray.wait(references, num_returns=1, timeout=_TICK_S)
            for reference in ray.wait(references, num_returns=len(references), timeout=0)[0]:
                if reference in self._pool.starts:
                    self._pool.take_start(reference)
                elif reference in self._calls:  # not where an earlier one told that the actor is gone
                    yield from self._take_answer(reference)
        else:
            time.sleep(_TICK_S)
        if time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            self._look()

    def close(self) -> None:
        if has_ray_died():
            return  # and all actors with it
        self._export()
        self._pool.close()

    def _hand_out(self) -> None:
        ready = self._pool.ready
        taken = bool(ready)
        while taken:
            # In rounds, so that nobody gets a shard ahead while another one has none.
            held = {worker.name: len(self._queue.held_by(worker.name)) for worker in ready}
            fewest, taken = min(held.values()), False
            for worker in ready:
                if held[worker.name] > fewest:
                    continue
                shard = self._queue.take(worker.name, num_workers=self._pool.num_staying)
                if shard is None:
                    continue
                self._began_s = self._began_s or time.monotonic()
                # What it may try in one process goes down with the tries that ended with another.
                max_tries = self._failures.max_attempts - self._queue.attempts(shard)
                self._calls[worker.begin(shard, max_tries=max(1, max_tries))] = (worker, shard)
                taken = True

    def _take_answer(self, reference: Any) -> Iterator[ShardResult]:
        worker, shard = self._calls[reference]
        try:
            result: ShardResult = ray.get(reference)
        except ray.exceptions.RayError as death:
            yield from self._bury(worker, death)
            return
        del self._calls[reference]
        worker.shards.pop(shard, None)
        if result.was_begun:
            self._queue.finish(worker.name, shard)
            yield self._count(result)
        else:
            self._queue.give_back(worker.name, shard)

    def _bury(self, worker: Worker, death: ray.exceptions.RayError) -> Iterator[ShardResult]:
        """An actor's process is gone: what it had finished counts, the rest is tried again or has failed."""
        mine = [reference for reference, call in self._calls.items() if call[0] is worker]
        answered, _ = ray.wait(mine, num_returns=len(mine), timeout=_TICK_S)
        for reference in mine:
            _, shard = self._calls.pop(reference)
            try:
                result: ShardResult | None = ray.get(reference) if reference in answered else None
            except ray.exceptions.RayError:
                continue
            if result is not None and result.was_begun:
                self._queue.finish(worker.name, shard)
                yield self._count(result)
        reason, blamed = worker.blame or _reason(death), worker.blamed
        if not worker.blame and (getattr(death, "preempted", False) or worker.node_id in leaving_nodes()):
            reason, blamed = "its node went away", set()
        held = self._queue.held_by(worker.name)
        tries = {url: shard.num_tries for url, shard in worker.shards.items()}
        exhausted = self._queue.lose(worker.name, blamed=blamed, tries=tries)
        self._pool.dismiss(worker)
        for shard in held:
            attempts = self._queue.attempts(shard)
            if shard in exhausted:
                yield self._count(ShardResult(shard, error=f"{reason}; so ended all {attempts} attempts"))
                continue
            alone = f" alone, after {attempts} of {self._failures.max_attempts} attempts" if attempts else ""
            logger.warning(
                "%s: lost with %s (%s); it will be tried again%s",
                storage.redact(shard), worker.name, reason, alone,
            )  # fmt: skip

    def _count(self, result: ShardResult) -> ShardResult:
        self._num_done += 1
        self._num_failed += bool(result.error)
        self._num_images += result.num_images
        self._num_tokens += result.num_tokens
        self._num_quarantined += result.num_quarantined
        self._bytes_in += result.bytes_in
        self._bytes_out += result.bytes_out
        return result

    @property
    def _has_failed_too_often(self) -> bool:
        limit = self._failures.max_failed_shards
        return limit is not None and self._num_failed > limit

    def _end(self) -> None:
        """No shard is begun from here on."""
        self._is_ending = True
        if self._stop.is_requested:
            why, how_long = "stopping", f" for {self._failures.stop_grace_s:g} s"
        else:
            why, how_long = f"{self._num_failed} shards failed, more than failures.max_failed_shards", ""
        logger.warning("%s: %d shards in work may finish%s", why, self._queue.num_held, how_long)
        for worker in self._pool.workers.values():
            if worker.is_ready:
                worker.stop_taking()

    def _look(self) -> None:
        check_ray()  # where its GCS server is gone, what follows waits for a minute
        self._pool.look(self._queue.workers)
        for worker in self._pool.workers.values():
            held = self._queue.held_by(worker.name)
            # A report may be older than the answer that was heard before it.
            worker.shards = {url: shard for url, shard in worker.shards.items() if url in held}
            if held and not worker.blame and (hung := worker.find_hung(held, self._failures)):
                worker.kill(hung, held)
        self._export()

    def _export(self) -> None:
        state = self.state
        self._metrics.update(
            asdict(state),
            shards_left=self._num_left,
            actors=state.num_actors,
            actors_wanted=state.num_actors_wanted,
            eta_s=state.left_s,
        )


def _reason(death: BaseException) -> str:
    """What Ray knows of a process's end, in a few words."""
    text = " ".join(str(death).split())
    if isinstance(death, ray.exceptions.OutOfMemoryError) or "memory pressure" in text:
        return "its actor's process ran out of memory"
    detail = re.search(r"(?:Worker exit detail|exit detail): (.*?)(?:\.(?:\s|$)|$)", text)
    told = f" ({detail[1][:160]})" if detail else ""
    return f"its actor's process died{told}"
