"""Small runs worked by hand, and what is drawn for them."""

from __future__ import annotations

import statistics
from unittest.mock import MagicMock

import numpy as np
import pytest

from tatok_pipe.errors import UserError
from tests.simulation.plans import Scripted, parts, plain
from tools.simulation import simulate
from tools.simulation.chances import Chances, End, draw_retries
from tools.simulation.clock import Clock
from tools.simulation.cluster import Cluster, Worker
from tools.simulation.ledger import Part


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
