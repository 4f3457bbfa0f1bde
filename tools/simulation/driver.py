"""What the run decides, as `_Run` and `WorkerPool` of ray_runtime do: who gets which shard, who is let go.

The real loop hands out, waits, and takes whatever answers have come; here such a step takes virtual time, so a driver
with more to do than time is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER, ShardQueue
from tools.simulation.clock import Clock
from tools.simulation.cluster import Cluster, Worker
from tools.simulation.options import SimulateCorpusConfig

MIN_WORKERS = 1  # actors.min as it is by default: those that are kept to the end


class Driver:
    """Takes what it hears in steps. `empty_s` is since when no shard is left to hand out."""

    def __init__(
        self, config: SimulateCorpusConfig, clock: Clock, cluster: Cluster, *, num_workers: int
    ) -> None:
        self.done: list[str] = []
        self.failed: list[str] = []
        self.empty_s = 0.0
        self.is_over = False
        self._config = config
        self._clock = clock
        self._cluster = cluster
        self._max_workers = num_workers
        self._num_shards = config.corpus.num_shards
        self._queue = ShardQueue(
            [str(shard) for shard in range(self._num_shards)], max_attempts=config.failures.max_attempts
        )
        self._workers: dict[str, Worker] = {}
        self._num_started = 0
        self._leaving: set[Worker] = set()
        self._ready: set[Worker] = set()  # that can be given shards
        self._with_room: set[Worker] = set()  # of those, who hold fewer than they may
        self._is_ending = False
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._is_stepping = False

    def begin(self) -> None:
        """Ask for the first actors."""
        self._end_step(())

    def hear_ready(self, worker: Worker) -> None:
        self._post(self._take_start, worker)

    def hear_answer(self, worker: Worker, shard: str, *, is_error: bool) -> None:
        self._post(self._take_answer, worker, shard, is_error)

    def hear_not_begun(self, worker: Worker, shard: str) -> None:
        self._post(self._take_back, worker, shard)

    def hear_leaving(self, worker: Worker) -> None:
        self._post(self._see_leaving, worker)

    def hear_death(self, worker: Worker, *, blamed: Collection[str] | None, tries: Mapping[str, int]) -> None:
        self._post(self._bury, worker, blamed, tries)

    @property
    def _num_left(self) -> int:
        # As the queue counts them, num_waiting + num_held, but without a look at every worker.
        return self._num_shards - len(self.done) - len(self.failed)

    def _post(self, take: Callable[..., None], *arguments: Any) -> None:
        self._inbox.append((take, arguments))
        if not self._is_stepping:
            self._begin_step()

    def _begin_step(self) -> None:
        driver = self._config.driver
        news, self._inbox, self._is_stepping = self._inbox, [], True
        step_s = len(news) * driver.answer_s + len(self._workers) * driver.step_per_worker_s
        self._clock.at(self._clock.now_s + step_s, self._end_step, news)

    def _end_step(self, news: Iterable[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        for take, arguments in news:
            take(*arguments)
        limit = self._config.failures.max_failed_shards
        if limit is not None and len(self.failed) > limit and not self._is_ending:
            self._is_ending = True
            for worker in self._workers.values():
                self._cluster.stop_taking(worker)
        if self._queue.num_waiting and not self._is_ending:
            self.empty_s = self._clock.now_s
        self._resize()
        if not self._is_ending:
            self._hand_out()
        num_waiting = self._queue.num_waiting
        num_held = self._num_left - num_waiting
        self.is_over = not num_held and (self._is_ending or not num_waiting)
        self._is_stepping = False
        if self._inbox:
            self._begin_step()

    def _resize(self) -> None:
        """Start actors while shards are waiting, and let idle ones go when none are."""
        num_wanted = min(self._max_workers, max(self._num_left, MIN_WORKERS))
        num_staying = len(self._workers) - len(self._leaving)
        if self._queue.num_waiting and not self._is_ending:
            for _ in range(num_wanted - num_staying):
                self._num_started += 1
                worker = Worker(self._num_started, f"actor {self._num_started}")
                self._workers[worker.name] = worker
                self._cluster.start(worker)
        elif num_staying > num_wanted:
            idle = [worker for worker in self._with_room if not self._queue.held_by(worker.name)]
            idle.sort(key=_number)
            for worker in idle[: num_staying - num_wanted]:
                self._dismiss(worker)

    def _hand_out(self) -> None:
        num_staying = len(self._workers) - len(self._leaving)
        for worker, shard in hand_out(self._queue, self._with_room, num_workers=num_staying):
            max_tries = self._config.failures.max_attempts - self._queue.attempts(shard)
            self._cluster.begin(worker, shard, max_tries=max(1, max_tries))
            if len(self._queue.held_by(worker.name)) >= SHARDS_PER_WORKER:
                self._with_room.discard(worker)

    def _take_start(self, worker: Worker) -> None:
        if worker.name in self._workers and worker not in self._leaving:
            self._ready.add(worker)
            self._with_room.add(worker)

    def _take_answer(self, worker: Worker, shard: str, is_error: bool) -> None:
        self._queue.finish(worker.name, shard)
        (self.failed if is_error else self.done).append(shard)
        self._see_room(worker)

    def _take_back(self, worker: Worker, shard: str) -> None:
        self._queue.give_back(worker.name, shard)
        self._see_room(worker)

    def _see_room(self, worker: Worker) -> None:
        if worker in self._ready:
            self._with_room.add(worker)
        elif not self._queue.held_by(worker.name):
            self._dismiss(worker)  # its node is leaving

    def _see_leaving(self, worker: Worker) -> None:
        if worker.name not in self._workers:
            return
        self._leaving.add(worker)
        self._ready.discard(worker)
        self._with_room.discard(worker)
        if self._queue.held_by(worker.name):
            self._cluster.stop_taking(worker)
        else:
            self._dismiss(worker)

    def _bury(self, worker: Worker, blamed: Collection[str] | None, tries: Mapping[str, int]) -> None:
        self.failed += self._queue.lose(worker.name, blamed=blamed, tries=tries)
        self._forget(worker)

    def _dismiss(self, worker: Worker) -> None:
        self._forget(worker)
        self._cluster.dismiss(worker)

    def _forget(self, worker: Worker) -> None:
        self._workers.pop(worker.name, None)
        for group in (self._leaving, self._ready, self._with_room):
            group.discard(worker)


def _number(worker: NamedWorker) -> int:
    return worker.number


class NamedWorker(Protocol):
    number: int  # in the order in which they were started
    name: str


AnyWorker = TypeVar("AnyWorker", bound=NamedWorker)


def hand_out(
    queue: ShardQueue, workers: Collection[AnyWorker], *, num_workers: int
) -> list[tuple[AnyWorker, str]]:
    """Give shards as `_Run._hand_out` does, and return to whom which. `num_workers` are there or coming.

    Of the ready ones `workers` need only be those that hold less than they may, as the others would get none: with a
    thousand workers there are one or two, and asking all after every answer is what would take the simulation's time.
    """
    given: list[tuple[AnyWorker, str]] = []
    if not queue.num_waiting:
        return given
    ordered = sorted(workers, key=_number)
    taken = bool(ordered)
    while taken:
        # In rounds, so that nobody gets a shard ahead while another one has none.
        held = [len(queue.held_by(worker.name)) for worker in ordered]
        fewest, taken = min(held), False
        for worker, num_held in zip(ordered, held, strict=True):
            if num_held > fewest:
                continue
            shard = queue.take(worker.name, num_workers=num_workers)
            if shard is not None:
                given.append((worker, shard))
                taken = True
    return given
