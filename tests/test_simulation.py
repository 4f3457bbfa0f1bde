"""The simulated run: worked by hand, against other ways to know the answer, and against the code it stands for."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tatok_pipe.config.load import from_dict
from tatok_pipe.encoding import shard_tokenizer
from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.ray_runtime.shard_run import _Run
from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER, FailuresConfig, ShardQueue
from tests.entries import assert_told
from tools.simulation import chances, driver, make_bill, simulate
from tools.simulation.__main__ import main
from tools.simulation.chances import Attempt, Chances, End, draw_retries
from tools.simulation.clock import Clock
from tools.simulation.cluster import Cluster, Worker
from tools.simulation.driver import Driver, hand_out
from tools.simulation.ledger import Part
from tools.simulation.options import SimulateCorpusConfig
from tools.simulation.run import Outcome

# Nothing takes time but the images, at one a second, and nothing goes wrong.
PLAIN: dict[str, Any] = {
    "corpus": {"num_shards": 3, "images_per_shard": 100},
    "actor": {
        "images_per_s": 1.0, "shard_cv": 0.0, "shard_overhead_s": 0.0, "fetch_s": 0.0, "commit_s": 0.0,
        "start_s": 0.0,
    },
    "nodes": {
        "start_s": 0.0, "preemptions_per_hour": 0.0, "notice_s": 0.0, "replacement_wait_s": 0.0,
        "detection_s": 0.0, "slow_share": 0.0,
    },
    "faults": {"request_failures": 0.0, "errors": 0.0, "crashes": 0.0, "hangs": 0.0, "poisonous": 0.0},
    "driver": {"answer_s": 0.0, "step_per_worker_s": 0.0},
}  # fmt: skip


def plain(**sections: dict[str, Any]) -> SimulateCorpusConfig:
    """PLAIN with other values in its sections."""
    values = {name: {**PLAIN.get(name, {}), **sections.get(name, {})} for name in {*PLAIN, *sections}}
    return from_dict(SimulateCorpusConfig, values)


class Scripted(Chances):
    """Seconds of each shard, and lives of nodes in the order of their launch; the others live for ever."""

    def __init__(self, lengths_s: Sequence[float], lives_s: Sequence[float] = ()) -> None:
        self._lengths_s = lengths_s
        self._lives_s = list(lives_s)
        self.wait_s = 0.0

    def attempt(self, shard: int, *, slow_factor: float, max_tries: int) -> Attempt:
        return Attempt(self._lengths_s[shard], 0.0, 0.0, End.DONE, 1)

    def node_life_s(self, *, is_spot: bool) -> float:
        return self._lives_s.pop(0) if self._lives_s else math.inf

    def slow_factor(self) -> float:
        return 1.0

    def replacement_wait_s(self) -> float:
        return self.wait_s


def parts(outcome: Outcome) -> dict[str, float]:
    """Seconds of the parts that are not 0."""
    return {part.value: round(s, 6) for part, s in outcome.books.parts.items() if abs(s) > 1e-9}


# Worked by hand.


def test_one_worker_takes_the_sum() -> None:
    config = plain(
        actor={"start_s": 10.0, "fetch_s": 2.0, "commit_s": 5.0, "shard_overhead_s": 1.0},
        nodes={"start_s": 30.0},
    )
    outcome = simulate(config, num_workers=1, seed=0)
    # Only the first shard waits for its bytes, and only the last commit is waited for.
    assert outcome.wall_s == pytest.approx(30 + 10 + 2 + 3 * 101 + 5)
    assert parts(outcome) == {"useful": 300, "slower": 3, "starting": 40, "waiting": 2, "tail": 5}
    assert outcome.goodput == pytest.approx(300 / 350)
    assert outcome.images_per_s == pytest.approx(300 / 350)
    # The queue was empty when the third shard was handed out, after the first commit: at 42 + 101 + 5 s.
    assert outcome.tail_s == pytest.approx(350 - 148)
    assert outcome.tail_idle_share == pytest.approx(5 / 202)


def test_two_workers_split_the_work() -> None:
    outcome = simulate(plain(corpus={"num_shards": 10}), num_workers=2, seed=0)
    assert outcome.wall_s == 500
    assert parts(outcome) == {"useful": 1000}
    assert outcome.goodput == 1


def test_the_last_shard_is_waited_for() -> None:
    outcome = simulate(plain(), num_workers=2, seed=0)
    # The first worker is ready a moment before the second, and gets a shard ahead: nothing is left from then on.
    assert outcome.wall_s == outcome.tail_s == 200
    # The second worker is let go at once, its node after a minute; the first one works.
    assert parts(outcome) == {"useful": 300, "tail": 60}
    assert outcome.tail_idle_share == pytest.approx(60 / 360)
    outcome = simulate(plain(nodes={"idle_timeout_s": None}), num_workers=2, seed=0)
    assert parts(outcome) == {"useful": 300, "tail": 100}


def test_only_as_many_nodes_as_there_are_shards() -> None:
    outcome = simulate(plain(nodes={"start_s": 50.0}), num_workers=1000, seed=0)
    # Three, a shard each: the first one that is ready gets none ahead while others are coming.
    assert outcome.wall_s == 50 + 100 and outcome.node_s == 3 * 150


def test_slow_nodes_take_longer() -> None:
    outcome = simulate(plain(nodes={"slow_share": 1.0, "slow_factor": 3.0}), num_workers=1, seed=0)
    assert outcome.wall_s == 900 and parts(outcome) == {"useful": 300, "slower": 600}


def test_without_notice_the_shard_in_work_is_lost() -> None:
    config = plain(nodes={"detection_s": 30.0, "start_s": 7.0}, actor={"start_s": 3.0})
    outcome = simulate(config, num_workers=1, seed=0, chances=Scripted([100.0] * 3, [260.0]))
    # Ready at 10, the third shard is begun at 210 and lost at 260, known at 290, begun anew on another node at 300.
    assert outcome.wall_s == 400
    assert parts(outcome) == {"useful": 300, "starting": 20, "preempted": 50}
    assert outcome.node_s == 260 + 110  # nothing is paid while nothing is there
    assert outcome.num_preemptions == 1 and outcome.num_failed == 0


def test_with_notice_the_shard_in_work_is_finished() -> None:
    config = plain(nodes={"notice_s": 120.0, "start_s": 7.0, "detection_s": 30.0}, actor={"start_s": 3.0})
    outcome = simulate(config, num_workers=1, seed=0, chances=Scripted([100.0] * 3, [130.0]))
    # The notice comes at 130, in the second shard; another node is asked for at once and does the third from 140 on.
    assert outcome.wall_s == 240
    # From the end of its shard at 210 the old node is of no use; the run ends before its time is over at 250.
    assert parts(outcome) == {"useful": 300, "starting": 20, "preempted": 30}
    assert outcome.node_s == 240 + 110


def test_a_notice_too_short_for_the_shard_loses_it() -> None:
    config = plain(nodes={"notice_s": 50.0, "detection_s": 0.0})
    outcome = simulate(config, num_workers=1, seed=0, chances=Scripted([100.0] * 3, [130.0]))
    # The second shard (100 to 200) is lost at 180 and begun again there, behind the third one, begun at 130.
    assert parts(outcome) == {"useful": 300, "preempted": 80}
    assert outcome.wall_s == 330


def test_what_is_not_committed_is_lost_with_its_node() -> None:
    config = plain(corpus={"num_shards": 1}, actor={"commit_s": 20.0}, nodes={"detection_s": 5.0})
    outcome = simulate(config, num_workers=1, seed=0, chances=Scripted([100.0], [110.0]))
    assert outcome.wall_s == 110 + 5 + 100 + 20
    assert parts(outcome) == {"useful": 100, "preempted": 100, "waiting": 10, "tail": 20}


def test_spot_and_demand() -> None:
    config = plain(
        corpus={"num_shards": 8}, nodes={"spot_share": 0.25, "preemptions_per_hour": 1e-9, "start_s": 10.0}
    )
    outcome = simulate(config, num_workers=4, seed=0)
    assert (outcome.books.spot_s, outcome.books.on_demand_s) == (210, 630)


def test_only_what_was_taken_is_waited_for() -> None:
    config, clock = plain(nodes={"preemptions_per_hour": 1.0}), Clock()
    chances = Scripted([100.0], [10.0])
    chances.wait_s = 40.0
    cluster = Cluster(config, clock, chances, num_workers=2)
    cluster.listener = MagicMock()
    ready_s: dict[str, float] = {}
    cluster.listener.hear_ready.side_effect = lambda worker: ready_s.update({worker.name: clock.now_s})
    cluster.start(Worker(1, "taken"))
    clock.at(20.0, cluster.start, Worker(2, "instead of it"))
    clock.at(20.0, cluster.start, Worker(3, "the second one"))
    clock.run(lambda: len(ready_s) == 3)
    assert ready_s == {"taken": 0, "the second one": 20, "instead of it": 60}


def test_a_poisonous_shard_fails_alone() -> None:
    config = plain(faults={"poisonous": 1.0}, corpus={"num_shards": 1}, actor={"start_s": 5.0})
    outcome = simulate(config, num_workers=1, seed=0)
    assert (outcome.num_failed, outcome.num_crashes, outcome.num_done) == (1, 3, 0)
    assert outcome.goodput == 0 and parts(outcome)["starting"] == 15
    outcome = simulate(plain(failures={"max_attempts": 1}, faults={"poisonous": 1.0}), num_workers=1, seed=0)
    # With a neighbour it is not known who did it, so both are tried alone: 2 + 2 attempts, and 1 for the third.
    assert (outcome.num_failed, outcome.num_crashes) == (3, 4)


def test_a_hung_shard_costs_its_actor() -> None:
    config = plain(faults={"hangs": 1.0}, failures={"stall_s": 50.0}, corpus={"num_shards": 1})
    outcome = simulate(config, num_workers=1, seed=0)
    assert (outcome.num_failed, outcome.num_crashes) == (1, 3)
    assert 150 < outcome.wall_s < 450 and parts(outcome) == {"failed": pytest.approx(outcome.wall_s)}
    slow = plain(failures={"shard_timeout_s": 99.0, "max_attempts": 1})
    outcome = simulate(slow, num_workers=1, seed=0)
    assert outcome.num_failed == 3 and outcome.wall_s == pytest.approx(3 * 99)


def test_too_many_failed_shards_end_the_run() -> None:
    config = plain(corpus={"num_shards": 50}, faults={"errors": 1.0}, failures={"max_failed_shards": 3})
    outcome = simulate(config, num_workers=2, seed=0)
    # The fourth ends it; what both workers have in work by then may finish.
    assert 4 <= outcome.num_failed <= 6 and outcome.num_done == 0
    assert outcome.num_left == 50 - outcome.num_failed


def test_a_driver_that_is_too_slow_limits_the_rate() -> None:
    config = plain(corpus={"num_shards": 400, "images_per_shard": 1}, driver={"answer_s": 1.0})
    outcome = simulate(config, num_workers=20, seed=0)
    assert outcome.wall_s == pytest.approx(400, rel=0.06)  # one answer a second, whatever 20 workers could do
    assert outcome.share(Part.USEFUL) < 0.06


def test_nodes_that_live_too_short_are_told() -> None:
    config = plain(corpus={"num_shards": 1}, nodes={"preemptions_per_hour": 3600.0})
    with pytest.raises(UserError, match="nodes live too short"):
        simulate(config, num_workers=1, seed=0)


def test_the_bill() -> None:
    config = plain(
        corpus={"num_shards": 3, "images_per_shard": 100, "input_bytes_per_image": 1 << 20,
                "output_bytes_per_image": 10**7},
        nodes={"spot_share": 0.5},
        prices={"spot": 2.0, "on_demand": 5.0, "head": 1.0, "get": 4.0, "put": 100.0, "storage": 0.5,
                "output_months": 2.0, "input_months": 0.0},
    )  # fmt: skip
    outcome = simulate(config, num_workers=2, seed=0)
    bill = make_bill(outcome, config)
    # The node of the worker without a third shard is paid for 60 s more; which of them it is the order says.
    assert (outcome.books.spot_s, outcome.books.on_demand_s) == (200, 160)
    assert bill.spot == pytest.approx(200 / 3600 * 2)
    assert bill.on_demand == pytest.approx(160 / 3600 * 5)
    assert bill.head == pytest.approx(200 / 3600)
    # 100 MiB are 7 parts of 16 MiB; four HEADs, a LIST and a PUT.
    assert bill.requests == pytest.approx(3 * (11 * 0.004 + 2 * 0.1))
    assert bill.storage == pytest.approx(3 * 2 * 0.5)  # 3 GB for two months
    assert bill.total == pytest.approx(bill.spot + bill.on_demand + bill.head + bill.requests + bill.storage)


# What is drawn.


def test_shards_have_the_spread_they_were_given() -> None:
    config = plain(corpus={"num_shards": 20_000, "images_per_shard": 50}, actor={"shard_cv": 0.3})
    chances = Chances(config, seed=1)
    seconds = [chances.attempt(shard, slow_factor=1.0, max_tries=1).seconds for shard in range(20_000)]
    assert statistics.mean(seconds) == pytest.approx(50, rel=0.01)
    assert statistics.stdev(seconds) / statistics.mean(seconds) == pytest.approx(0.3, rel=0.03)


def test_an_actor_tries_errors_again() -> None:
    chances = Chances(plain(faults={"errors": 1.0}), seed=0)
    attempt = chances.attempt(0, slow_factor=1.0, max_tries=3)
    assert (attempt.end, attempt.num_tries, attempt.useful_s) == (End.ERROR, 3, 0.0)
    assert 1 + 2 < attempt.wasted_s < 1 + 2 + 3 * 100
    assert chances.attempt(0, slow_factor=1.0, max_tries=1).num_tries == 1
    quick = Chances(plain(faults={"errors": 1.0}, actor={"images_per_s": 1e9}), seed=0)
    assert quick.attempt(0, slow_factor=1.0, max_tries=3).wasted_s == pytest.approx(1 + 2)  # the pauses


def test_pauses_of_requests_are_those_of_storage() -> None:
    num_requests, failures = 50, 0.3
    delays_s, has_given_up = draw_retries(
        np.random.default_rng(0), num_shards=20_000, num_requests=num_requests, failures=failures
    )
    # After the k-th failure of a request a pause of 0.25 * 2^(k-1) s, three quarters of it on average.
    pauses_s = [0.25, 0.5, 1.0, 2.0]
    expected_s = num_requests * sum(failures**k * 0.75 * pause for k, pause in enumerate(pauses_s, start=1))
    assert delays_s.mean() == pytest.approx(expected_s, rel=0.01)
    assert has_given_up.mean() == pytest.approx(1 - (1 - failures**5) ** num_requests, rel=0.05)


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


# The entry.

SMALL = [
    "num_workers=[2, 4]", "num_seeds=2", "corpus.num_shards=40", "corpus.images_per_shard=100000",
    "nodes.preemptions_per_hour=5",
]  # fmt: skip


def test_the_entry_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        assert main([*SMALL, f"output.url={tmp_path / name}"]) == 0
    printed = capsys.readouterr().out
    tables = (tmp_path / "a" / "tables.md").read_text()
    assert printed == tables * 2
    assert [line.split("|")[1].strip() for line in tables.splitlines() if line] == [
        "workers",
        "------:",
        "2",
        "4",
    ] * 2
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["rows"][1]["num_workers"] == 4 and results["config"]["num_seeds"] == 2
    for row in results["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(1)
        assert row["parts"]["useful"] == row["goodput"]["median"]
        # The formula of docs/scale.md: hours = images / (rate x goodput), but for the spread of shards.
        hours = 40 * 100_000 / (4000 * 3600 * row["goodput"]["median"])
        assert row["node_hours"]["low"] * 0.97 <= hours <= row["node_hours"]["high"] * 1.03
    for name in ("results.json", "tables.md", "scale.svg", "scale.png"):
        content = (tmp_path / "a" / name).read_bytes()
        if name != "results.json":  # which names the folder
            assert content == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "scale.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "a" / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a" / "scale.png").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_workers=[0]", r"num_workers=\[0\]: expected"),
        ("num_workers=[]", "num_workers"),
        ("num_workers=[4, 4]", "every number once"),
        ("num_seeds=0", "num_seeds=0: expected at least 1"),
        ("seed=-1", "seed=-1"),
        ("corpus.num_shards=0", "corpus.num_shards=0: expected at least 1"),
        ("actor.images_per_s=0", "actor.images_per_s=0.0: expected more than 0"),
        ("actor.shard_cv=-1", "actor.shard_cv"),
        ("nodes.spot_share=1.5", "nodes.spot_share=1.5: expected 0 to 1"),
        ("nodes.slow_factor=0.5", "nodes.slow_factor=0.5: expected at least 1"),
        ("nodes.idle_timeout_s=-1", "nodes.idle_timeout_s"),
        ("faults.errors=2", "faults.errors"),
        ("failures.max_attempts=0", "failures.max_attempts=0"),
        ("driver.answer_s=-1", "driver.answer_s"),
        ("prices.spot=-1", "prices.spot=-1.0: expected at least 0"),
        ("prices.sport=1", "did you mean prices.spot"),
        ("actor.images_per_s=nan", "finite"),
    ],
)
def test_what_cannot_be_simulated_is_told(argument: str, message: str) -> None:
    assert_told(main, [argument], message)


def test_every_option_has_help_and_every_quantity_a_unit() -> None:
    for section in dataclasses.fields(SimulateCorpusConfig):
        if not dataclasses.is_dataclass(section.type) and isinstance(section.default_factory, type):
            for field in dataclasses.fields(section.default_factory):
                assert field.metadata["help"]
                assert field.metadata["unit"] or field.name == "url", field.name


def test_planning_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from tools.simulation.__main__ import main; main(['num_workers=[1]', 'num_seeds=1', "
        "'corpus.num_shards=2']); print(sorted({'ray', 'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
