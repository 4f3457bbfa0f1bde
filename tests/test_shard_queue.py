"""Who gets which shard, and who is blamed when a worker dies."""

from __future__ import annotations

import random

import pytest

from tatok_pipe.runs.shard_queue import SHARDS_PER_WORKER, FailuresConfig, ShardQueue


def test_shards_go_out_in_order_and_one_ahead() -> None:
    queue = ShardQueue(["a", "b", "c", "d"], max_attempts=3)
    assert [queue.take("w", num_workers=1) for _ in range(3)] == ["a", "b", None]
    queue.finish("w", "a")
    assert queue.take("w", num_workers=1) == "c"
    assert (queue.num_waiting, queue.num_held, queue.held_by("w")) == (1, 2, ["b", "c"])


def test_near_the_end_nothing_waits_behind_a_straggler() -> None:
    queue = ShardQueue(["a", "b", "c"], max_attempts=3)
    assert queue.take("v", num_workers=2) == "a"
    assert queue.take("v", num_workers=2) == "b"  # two are left for two workers
    assert queue.take("w", num_workers=2) == "c"
    queue = ShardQueue(["a", "b", "c"], max_attempts=3)
    assert queue.take("v", num_workers=3) == "a"
    assert queue.take("v", num_workers=3) is None  # b and c are for the other two


def test_a_neighbour_of_a_poisonous_shard_is_never_failed_for_it() -> None:
    queue = ShardQueue(["poison", "good", "other"], max_attempts=3)
    assert [queue.take("w1", num_workers=1) for _ in range(2)] == ["poison", "good"]
    assert queue.lose("w1", blamed=None) == []
    assert (queue.attempts("poison"), queue.attempts("good")) == (1, 1)
    # Each alone from here on, whatever else is waiting.
    first = queue.take("w2", num_workers=1)
    assert first == "good" and queue.take("w2", num_workers=1) is None
    queue.finish("w2", "good")
    assert queue.take("w2", num_workers=1) == "poison" and queue.take("w2", num_workers=1) is None
    assert queue.lose("w2", blamed=None) == []
    assert queue.take("w3", num_workers=1) == "poison"
    assert queue.lose("w3", blamed=None) == ["poison"]
    assert queue.take("w4", num_workers=1) == "other"
    queue.finish("w4", "other")
    assert queue.num_waiting == queue.num_held == 0


def test_a_machine_that_goes_away_costs_no_attempt() -> None:
    queue = ShardQueue(["a", "b", "c"], max_attempts=1)
    for worker in ("w1", "w2", "w3", "w4"):
        assert [queue.take(worker, num_workers=1) for _ in range(2)] == ["a", "b"]
        assert queue.lose(worker, blamed=set()) == []
    assert queue.attempts("a") == 0 and queue.num_waiting == 3


def test_a_hung_shard_is_blamed_alone() -> None:
    queue = ShardQueue(["hung", "next"], max_attempts=2)
    assert [queue.take("w", num_workers=1) for _ in range(2)] == ["hung", "next"]
    assert queue.lose("w", blamed={"hung"}) == []
    assert (queue.attempts("hung"), queue.attempts("next")) == (1, 0)
    assert queue.take("w", num_workers=1) == "hung"
    assert queue.lose("w", blamed={"hung"}) == ["hung"]
    assert queue.take("w", num_workers=1) == "next"


def test_with_one_attempt_only_certain_blame_fails_a_shard() -> None:
    queue = ShardQueue(["poison", "good"], max_attempts=1)
    assert [queue.take("w", num_workers=1) for _ in range(2)] == ["poison", "good"]
    assert queue.lose("w", blamed=None) == []
    outcomes = {}
    while (shard := queue.take("w", num_workers=1)) is not None:
        if shard == "poison":
            outcomes[shard] = queue.lose("w", blamed=None)
        else:
            queue.finish("w", shard)
            outcomes[shard] = []
    assert outcomes == {"good": [], "poison": ["poison"]}


def test_tries_inside_a_lost_worker_count() -> None:
    queue = ShardQueue(["flaky", "poison"], max_attempts=3)
    assert [queue.take("w", num_workers=1) for _ in range(2)] == ["flaky", "poison"]
    assert queue.lose("w", blamed=None, tries={"flaky": 2, "poison": 0}) == []
    assert (queue.attempts("flaky"), queue.attempts("poison")) == (2, 1)


def test_a_shard_given_back_is_the_next_one() -> None:
    queue = ShardQueue(["a", "b", "c"], max_attempts=3)
    assert [queue.take("w", num_workers=1) for _ in range(2)] == ["a", "b"]
    queue.give_back("w", "b")
    assert queue.take("v", num_workers=1) == "b"


def test_every_shard_ends_once_whatever_dies() -> None:
    """Random deaths over many workers: each shard is done or failed exactly once, the poisonous ones fail after
    three attempts, no other does."""
    for seed in range(50):
        rng = random.Random(seed)
        shards = [f"s{i}" for i in range(40)]
        poison = set(rng.sample(shards, 3))
        queue = ShardQueue(shards, max_attempts=3)
        done: list[str] = []
        failed: list[str] = []
        workers = [f"w{i}" for i in range(5)]
        for _ in range(5000):
            if not queue.num_waiting and not queue.num_held:
                break
            worker = rng.choice(workers)
            queue.take(worker, num_workers=len(workers))
            held = queue.held_by(worker)
            assert len(held) <= SHARDS_PER_WORKER
            if not held:
                continue
            if rng.random() < 0.05:
                assert queue.lose(worker, blamed=set()) == []
            elif held[0] in poison:
                failed += queue.lose(worker, blamed=None)
            elif rng.random() < 0.1 and len(held) > 1:
                queue.give_back(worker, held[1])
            else:
                queue.finish(worker, held[0])
                done.append(held[0])
        assert sorted(done + failed) == sorted(shards)
        assert set(failed) == poison
        assert all(queue.attempts(shard) == 3 for shard in poison)


@pytest.mark.parametrize(
    "options",
    [
        {"max_failed_shards": -1}, {"max_attempts": 0}, {"stall_s": 0.0}, {"shard_timeout_s": -1.0},
        {"stop_grace_s": -1.0},
    ],
)  # fmt: skip
def test_impossible_policies_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FailuresConfig(**options)  # type: ignore[arg-type]
