"""What machines do: nodes that come and go, actors on them that work, commit and die. Decides nothing.

An actor holds up to two shards, as the real one does: it works on one at a time, commits what is through while it works
on the next, and has the first bytes of the next one fetched ahead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tatok_pipe.errors import UserError
from tools.simulation.chances import Attempt, Chances, End
from tools.simulation.clock import Clock
from tools.simulation.ledger import Account, Ledger, Part
from tools.simulation.options import SimulateCorpusConfig

# So many losses a shard and worker are no run but a treadmill: shards that take longer than nodes live.
_MAX_LOSSES = 30


@dataclass(eq=False)
class Node:
    """A machine with room for one actor."""

    account: Account
    slow_factor: float
    worker: Worker | None = None
    is_up: bool = True  # launched and not gone
    is_leaving: bool = False
    free_s: float = 0.0  # since when it has no actor


@dataclass(eq=False)
class Worker:
    """An actor. `node` is None until its node is launched."""

    number: int
    name: str
    node: Node | None = None
    is_running: bool = False
    is_gone: bool = False
    shard: str | None = None  # in work, with what becomes of it, from `began_s` on
    attempt: Attempt | None = None
    began_s: float = 0.0
    ahead: tuple[str, int, float] | None = None  # shard, tries it may take, when its first bytes are there
    committing: dict[str, Attempt] = field(default_factory=dict)


class Listener(Protocol):
    """Whom the machines tell what happens."""

    def hear_ready(self, worker: Worker) -> None: ...

    def hear_answer(self, worker: Worker, shard: str, *, is_error: bool) -> None: ...

    def hear_not_begun(self, worker: Worker, shard: str) -> None: ...

    def hear_leaving(self, worker: Worker) -> None: ...

    def hear_death(
        self, worker: Worker, *, blamed: Collection[str] | None, tries: Mapping[str, int]
    ) -> None: ...


class Cluster:
    """All nodes of a run. `num_workers` of them are wanted; the spot share of them is kept up."""

    def __init__(
        self, config: SimulateCorpusConfig, clock: Clock, chances: Chances, *, num_workers: int
    ) -> None:
        self.listener: Listener
        self.ledger = Ledger()
        self.num_preemptions = self.num_crashes = self.num_tries = 0
        self._config = config
        self._clock = clock
        self._chances = chances
        self._nodes: dict[Node, None] = {}  # that are up
        self._free: dict[Node, None] = {}  # of those, without an actor, longest first
        self._num_spot_wanted = round(num_workers * config.nodes.spot_share)
        self._num_spot = 0  # asked for or up, and not leaving
        self._num_taken = 0  # spot nodes that were taken and not asked for again
        self._max_losses = _MAX_LOSSES * (num_workers + config.corpus.num_shards)

    def start(self, worker: Worker) -> None:
        """Start the actor on a free node, or on a new one."""
        if self._free:
            node = next(iter(self._free))
            del self._free[node]
            self._settle(node)
            self._occupy(node, worker, self._config.actor.start_s)
            return
        is_spot = self._num_spot < self._num_spot_wanted
        wait_s = 0.0
        if is_spot:
            self._num_spot += 1
            if self._num_taken:
                self._num_taken -= 1
                wait_s = self._chances.replacement_wait_s()
        self._clock.at(self._clock.now_s + wait_s, self._launch, worker, is_spot)

    def begin(self, worker: Worker, shard: str, *, max_tries: int) -> None:
        """Give the actor a shard. One that is dead without anybody's knowing it hears nothing."""
        if worker.is_gone:
            return
        fetched_s = self._clock.now_s + self._config.actor.fetch_s
        if worker.shard is None:
            self._work(worker, shard, max_tries, fetched_s)
        else:
            worker.ahead = (shard, max_tries, fetched_s)

    def stop_taking(self, worker: Worker) -> None:
        """What the actor has not begun comes back."""
        if worker.ahead is not None and not worker.is_gone:
            shard, worker.ahead = worker.ahead[0], None
            self.listener.hear_not_begun(worker, shard)

    def dismiss(self, worker: Worker) -> None:
        """End an actor that holds no shard."""
        worker.is_gone = True
        if worker.node is not None and worker.node.is_up:
            self._settle(worker.node)
            self._set_free(worker.node)

    def close(self) -> None:
        """The run is over, and nothing is paid for any more."""
        for node in list(self._nodes):
            self._settle(node)
            self._remove(node)

    def _launch(self, worker: Worker, is_spot: bool) -> None:
        now_s, nodes = self._clock.now_s, self._config.nodes
        node = Node(Account(is_spot, now_s, now_s), self._chances.slow_factor())
        self._nodes[node] = None
        self._occupy(node, worker, nodes.start_s + self._config.actor.start_s)
        life_s = self._chances.node_life_s(is_spot=is_spot)
        if life_s < float("inf"):
            self._clock.at(now_s + life_s, self._take_away, node)

    def _occupy(self, node: Node, worker: Worker, start_s: float) -> None:
        node.worker, worker.node = worker, node
        self._clock.at(self._clock.now_s + start_s, self._run, worker)

    def _run(self, worker: Worker) -> None:
        if not worker.is_gone and worker.node is not None:
            self._settle(worker.node)
            worker.is_running = True
            self.listener.hear_ready(worker)

    def _work(self, worker: Worker, shard: str, max_tries: int, start_s: float) -> None:
        assert worker.node is not None
        attempt = self._chances.attempt(int(shard), slow_factor=worker.node.slow_factor, max_tries=max_tries)
        self.num_tries += attempt.num_tries
        worker.shard, worker.attempt, worker.began_s = shard, attempt, start_s
        self._clock.at(start_s + attempt.seconds, self._end_work, worker)

    def _end_work(self, worker: Worker) -> None:
        if worker.is_gone:
            return
        shard, attempt, node, now_s = worker.shard, worker.attempt, worker.node, self._clock.now_s
        assert shard is not None and attempt is not None and node is not None
        self._wait_until(node, worker.began_s)
        self.ledger.work(
            node.account,
            now_s,
            useful_s=attempt.useful_s,
            extra_s=attempt.extra_s,
            wasted_s=attempt.wasted_s,
        )
        worker.shard = worker.attempt = None
        if attempt.end in (End.CRASH, End.HANG):
            self._crash(worker, shard, attempt)
            return
        if attempt.end == End.ERROR:
            self.listener.hear_answer(worker, shard, is_error=True)
        else:
            worker.committing[shard] = attempt
            self._clock.at(now_s + self._config.actor.commit_s, self._commit, worker, shard)
        if worker.ahead is not None:
            shard, max_tries, fetched_s = worker.ahead
            worker.ahead = None
            self._work(worker, shard, max_tries, max(now_s, fetched_s))

    def _commit(self, worker: Worker, shard: str) -> None:
        if not worker.is_gone:
            del worker.committing[shard]
            self.listener.hear_answer(worker, shard, is_error=False)

    def _crash(self, worker: Worker, shard: str, attempt: Attempt) -> None:
        """The process died of its shard, or was ended because of it, which is told apart from its neighbour."""
        assert worker.node is not None
        self.num_crashes += 1
        self._bury(worker, Part.FAILED)
        self._set_free(worker.node)
        blamed = {shard} if attempt.end == End.HANG else None
        self.listener.hear_death(worker, blamed=blamed, tries={shard: attempt.num_tries})

    def _bury(self, worker: Worker, part: Part) -> None:
        worker.is_gone = True
        for attempt in worker.committing.values():
            self.ledger.lose(part, useful_s=attempt.useful_s, extra_s=attempt.extra_s)

    def _take_away(self, node: Node) -> None:
        """The cloud wants a spot node back. It says so, and does it `notice_s` later."""
        if not node.is_up:
            return
        self.num_preemptions += 1
        if self.num_preemptions > self._max_losses:
            raise UserError(
                f"{self.num_preemptions} nodes were taken and shards are still left: nodes live too short for "
                f"shards of corpus.images_per_shard={self._config.corpus.images_per_shard}; take smaller "
                "shards, or a lower nodes.preemptions_per_hour"
            )
        self._settle(node)
        node.is_leaving = True
        self._num_spot -= 1
        self._num_taken += 1
        self._free.pop(node, None)
        notice_s = self._config.nodes.notice_s
        if notice_s and node.worker is not None:
            self.listener.hear_leaving(node.worker)
        self._clock.at(self._clock.now_s + notice_s, self._end_node, node)

    def _end_node(self, node: Node) -> None:
        worker, now_s = node.worker, self._clock.now_s
        if not node.is_up:
            return
        self._settle(node)
        self.ledger.spend(node.account, Part.PREEMPTED, now_s)  # of the shard in work
        self._remove(node)
        if worker is not None:
            self._bury(worker, Part.PREEMPTED)
            known_s = now_s + self._config.nodes.detection_s
            self._clock.at(known_s, lambda: self.listener.hear_death(worker, blamed=(), tries={}))

    def _set_free(self, node: Node) -> None:
        node.worker = None
        if node.is_leaving:
            return
        self._free[node] = None
        node.free_s, timeout_s = self._clock.now_s, self._config.nodes.idle_timeout_s
        if timeout_s is not None:
            self._clock.at(node.free_s + timeout_s, self._scale_down, node, node.free_s)

    def _scale_down(self, node: Node, free_s: float) -> None:
        if node in self._free and node.free_s == free_s:
            self._settle(node)
            del self._free[node]
            self._num_spot -= node.account.is_spot
            self._remove(node)

    def _remove(self, node: Node) -> None:
        node.is_up = False
        del self._nodes[node]
        self.ledger.close(node.account)

    def _settle(self, node: Node) -> None:
        """Write down the node's time until now, but for a shard in work."""
        worker, now_s = node.worker, self._clock.now_s
        if worker is not None and not worker.is_running and not node.is_leaving:
            self.ledger.spend(node.account, Part.STARTING, now_s)
        else:
            is_working = worker is not None and worker.shard is not None
            self._wait_until(node, min(now_s, worker.began_s) if worker and is_working else now_s)

    def _wait_until(self, node: Node, until_s: float) -> None:
        if node.is_leaving and until_s > node.account.until_s:
            self.ledger.spend(node.account, Part.PREEMPTED, until_s)
        else:
            self.ledger.idle(node.account, until_s)
