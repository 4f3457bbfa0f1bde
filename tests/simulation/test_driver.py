"""The driver: what holds whatever happens, other ways to know the answer, and the code it stands for."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tatok_pipe.encoding import shard_tokenizer
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.ray_runtime.shard_run import _Run
from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER, FailuresConfig, ShardQueue
from tests.simulation.plans import Scripted, plain
from tools.simulation import chances, driver, simulate
from tools.simulation.chances import Chances
from tools.simulation.clock import Clock
from tools.simulation.cluster import Cluster
from tools.simulation.driver import Driver, hand_out
from tools.simulation.ledger import Part
from tools.simulation.options import SimulateCorpusConfig

# What holds whatever happens.

HARSH: dict[str, dict[str, Any]] = {
    "corpus": {"num_shards": 150, "images_per_shard": 100},
    "actor": {"shard_overhead_s": 0.5, "fetch_s": 1.0, "commit_s": 8.0, "start_s": 4.0},
    "nodes": {
        "start_s": 60.0, "preemptions_per_hour": 6.0, "notice_s": 60.0, "replacement_wait_s": 100.0,
        "detection_s": 20.0, "slow_share": 0.2, "spot_share": 0.8,
    },
    "faults": {
        "request_failures": 0.02, "errors": 0.02, "crashes": 0.05, "hangs": 0.01, "poisonous": 0.02,
    },
    "driver": {"answer_s": 0.2, "step_per_worker_s": 0.01},
}  # fmt: skip


def run_watched(
    config: SimulateCorpusConfig, *, num_workers: int, seed: int
) -> tuple[Driver, Cluster, float]:
    clock = Clock()
    cluster = Cluster(config, clock, Chances(config, seed=seed), num_workers=num_workers)
    driver = cluster.listener = Driver(config, clock, cluster, num_workers=num_workers)
    driver.begin()
    clock.run(lambda: driver.is_over)
    cluster.close()
    return driver, cluster, clock.now_s


@pytest.mark.parametrize("notice_s", [0.0, 60.0])
def test_every_shard_ends_once_and_every_paid_second_has_its_part(notice_s: float) -> None:
    seen_failed = seen_preempted = 0
    for seed in range(30):
        sections = {**HARSH, "nodes": {**HARSH["nodes"], "notice_s": notice_s}}
        config, num_workers = plain(**sections), 1 + seed % 12
        driver, cluster, end_s = run_watched(config, num_workers=num_workers, seed=seed)
        ended = [*driver.done, *driver.failed]
        assert len(ended) == 150 and set(ended) == {str(shard) for shard in range(150)}
        books = cluster.ledger.settle(empty_s=driver.empty_s, end_s=end_s)
        assert sum(books.parts.values()) == pytest.approx(books.spot_s + books.on_demand_s)
        assert all(seconds > -1e-6 for seconds in books.parts.values())
        assert books.parts[Part.USEFUL] == pytest.approx(100.0 * len(driver.done))
        assert books.spot_s + books.on_demand_s <= end_s * num_workers + 60 * (cluster.num_preemptions + 1)
        assert 0 <= books.parts[Part.TAIL] <= books.tail_s + 1e-6
        seen_failed += len(driver.failed)
        seen_preempted += cluster.num_preemptions
        poisonous = np.random.default_rng([seed, 0])
        poisonous.lognormal(0.0, 1.0, 150)
        assert {str(i) for i in np.flatnonzero(poisonous.random(150) < 0.02)} <= set(driver.failed)
    assert seen_failed > 50 and seen_preempted > 500  # or else nothing was tested


def test_the_same_seed_gives_the_same_outcome() -> None:
    config = plain(**HARSH)
    first = simulate(config, num_workers=7, seed=3)
    assert simulate(config, num_workers=7, seed=3) == first
    assert simulate(config, num_workers=7, seed=4).wall_s != first.wall_s


def test_more_preemptions_never_help() -> None:
    rates = [0.0, 0.5, 2.0, 8.0]
    for notice_s in (0.0, 120.0):
        goodput, wall_s = [], []
        for rate in rates:
            nodes = {**HARSH["nodes"], "preemptions_per_hour": rate, "notice_s": notice_s}
            config = plain(**{**HARSH, "nodes": nodes})
            outcomes = [simulate(config, num_workers=8, seed=seed) for seed in range(25)]
            goodput.append(statistics.mean(outcome.goodput for outcome in outcomes))
            wall_s.append(statistics.mean(outcome.wall_s for outcome in outcomes))
        assert goodput == sorted(goodput, reverse=True) and goodput[0] > 1.1 * goodput[-1]
        assert wall_s[0] < wall_s[-1]


def test_many_workers_take_as_long_as_one_shard() -> None:
    config = plain(corpus={"num_shards": 64}, nodes={"start_s": 40.0}, actor={"shard_cv": 0.2})
    longest_s = max(
        Chances(config, seed=5).attempt(shard, slow_factor=1.0, max_tries=1).seconds for shard in range(64)
    )
    # Twice that at most: the first worker that is ready gets a shard ahead.
    assert 40 + longest_s <= simulate(config, num_workers=64, seed=5).wall_s <= 40 + 2 * longest_s
    walls_s = [simulate(config, num_workers=count, seed=5).wall_s for count in (1, 2, 4, 8, 16, 32, 64)]
    assert walls_s == sorted(walls_s, reverse=True)


# Other ways to know.


def test_restarts_take_what_renewal_theory_says() -> None:
    """One worker, work lost with its node: (1/λ + R)(e^{λw} − 1) a shard on average, where nodes live 1/λ, another one
    is there after R, and a shard takes w. Mean of 4,000 shards; its standard error is about 2 %."""
    per_hour, wait_s, work_s = 6.0, 200.0, 600.0
    config = plain(
        corpus={"num_shards": 4000, "images_per_shard": 600},
        nodes={"preemptions_per_hour": per_hour, "replacement_wait_s": wait_s},
    )
    wall_s = simulate(config, num_workers=1, seed=0).wall_s
    rate = per_hour / 3600
    expected_s = (1 / rate + wait_s) * math.expm1(rate * work_s)
    assert wall_s / 4000 == pytest.approx(expected_s, rel=0.05)


def tick_through(
    lengths_s: list[int], lives_s: list[int], *, num_workers: int, start_s: int, known_after_s: int
) -> int:
    """The run once more, by a clock that ticks: every second, everybody looks what there is to do. Knows nothing of
    ShardQueue; returns the second of the last commit."""
    waiting = list(range(len(lengths_s)))
    lives, num_done, second = list(lives_s), 0, 0
    nodes: list[dict[str, Any]] = []
    while num_done < len(lengths_s):
        for node in nodes:
            if node["ready"] <= second < node["dies"] and node["held"]:
                node["left"] -= 1
                if node["left"] == 0:
                    num_done += 1
                    node["held"].pop(0)
                    node["left"] = lengths_s[node["held"][0]] if node["held"] else 0
        second += 1
        for node in [node for node in nodes if second >= node["dies"] + known_after_s]:
            nodes.remove(node)
            waiting = node["held"] + waiting
        num_left = len(lengths_s) - num_done
        if not waiting:
            idle = [node for node in nodes if node["ready"] < second and not node["held"]]
            for node in idle[: max(0, len(nodes) - num_left)]:
                nodes.remove(node)
        while waiting and len(nodes) < min(num_workers, num_left):
            life_s = lives.pop(0) if lives else 10**9
            nodes.append({"ready": second + start_s, "dies": second + life_s, "held": [], "left": 0})
        known = [node for node in nodes if node["ready"] < second]
        for size in (0, 1):
            for node in known:
                if waiting and len(node["held"]) == size and (size == 0 or len(waiting) >= len(known)):
                    node["held"].append(waiting.pop(0))
                    if size == 0:
                        node["left"] = lengths_s[node["held"][0]]
    return second


def test_a_clock_that_ticks_comes_to_the_same() -> None:
    """Seconds by seconds instead of events, and a queue of its own: within 3 ticks and 1.5 %, and within the longest
    shard in every single run."""
    relative = []
    for seed in range(40):
        rng = random.Random(seed)
        lengths_s = [rng.randint(20, 60) for _ in range(80)]
        lives_s = [rng.randint(50, 900) for _ in range(rng.randint(0, 12))]
        config = plain(
            corpus={"num_shards": 80}, nodes={"start_s": 15.0, "detection_s": 10.0, "idle_timeout_s": 0.0}
        )
        num_workers = rng.randint(1, 6)
        chances = Scripted([float(length) for length in lengths_s], [float(life) for life in lives_s])
        wall_s = simulate(config, num_workers=num_workers, seed=0, chances=chances).wall_s
        ticked_s = tick_through(lengths_s, lives_s, num_workers=num_workers, start_s=15, known_after_s=10)
        assert abs(wall_s - ticked_s) <= 60
        relative.append(ticked_s / wall_s - 1)
    assert abs(statistics.mean(relative)) < 0.015


# The code it stands for.


class StandIn:
    """A worker of the real run that only notes what it is given."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"actor {number}"
        self.begun: list[str] = []

    def begin(self, shard: str, *, max_tries: int) -> object:
        self.begun.append(shard)
        return object()


def test_shards_are_handed_out_as_the_real_run_does() -> None:
    num_given = num_partial = 0
    for seed in range(40):
        rng = random.Random(seed)
        shards = [f"s{number}" for number in range(60)]
        real_queue, queue = (ShardQueue(shards, max_attempts=3) for _ in range(2))
        workers = {f"actor {number}": StandIn(number) for number in range(6)}
        for _ in range(200):
            ready = [worker for worker in workers.values() if rng.random() < 0.9]
            for worker in workers.values():
                worker.begun.clear()
            # What a step of the real run would do, by its own code.
            run = MagicMock(_queue=real_queue, _failures=FailuresConfig(), _calls={})
            run._pool.ready = ready
            run._pool.num_staying = num_staying = len(ready) + rng.randint(0, 2)
            _Run._hand_out(run)
            with_room = [w for w in ready if len(queue.held_by(w.name)) < SHARDS_PER_WORKER]
            rng.shuffle(with_room)
            num_partial += len(with_room) < len(ready)
            given = hand_out(queue, with_room, num_workers=num_staying)
            for worker in ready:
                assert [shard for whom, shard in given if whom is worker] == worker.begun
            num_given += len(given)
            victim = rng.choice(list(workers.values()))
            held = queue.held_by(victim.name)
            assert held == real_queue.held_by(victim.name)
            if not held:
                continue
            event = rng.random()
            for one in (queue, real_queue):
                if event < 0.15:
                    one.lose(victim.name, blamed=None)
                elif event < 0.3:
                    one.lose(victim.name, blamed=set())
                elif event < 0.4 and len(held) > 1:
                    one.give_back(victim.name, held[1])
                else:
                    one.finish(victim.name, held[0])
    assert num_given > 2000 and num_partial > 2000


def test_what_is_written_down_twice_is_the_same() -> None:
    assert chances.MAX_TRIES_IN_ACTOR == shard_tokenizer._NUM_TRIES
    assert chances.FIRST_PAUSE_S == shard_tokenizer._FIRST_PAUSE_S
    assert ActorsConfig().min == driver.MIN_WORKERS
