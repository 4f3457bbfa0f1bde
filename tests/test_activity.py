"""What a worker says of itself."""

from __future__ import annotations

import threading
import time

from tatok_pipe.runs.activity import Activity


def test_a_shard_counts_from_its_turn_and_afresh_in_each_attempt() -> None:
    activity = Activity(num_lanes=1)
    with activity.follow("a") as track:
        assert [(s.url, s.is_working, s.work_s) for s in activity.status.shards] == [("a", False, 0.0)]
        track.begin()
        track.advance(images=3, tokens=30, quarantined=1, share=0.5)
        track.advance(images=2, tokens=20, quarantined=0, share=0.9)
        (status,) = activity.status.shards
        assert (status.num_images, status.num_tokens, status.num_quarantined, status.share) == (5, 50, 1, 0.9)
        time.sleep(0.05)
        (status,) = activity.status.shards
        assert status.idle_s >= 0.05 and status.work_s >= status.idle_s
        track.touch()
        assert activity.status.shards[0].idle_s < status.idle_s
        track.wait()
        (status,) = activity.status.shards
        assert (status.is_working, status.num_images, status.idle_s) == (False, 0, 0.0)
        track.begin()
        assert (activity.status.shards[0].num_images, activity.status.shards[0].num_tries) == (0, 2)
    assert activity.status.shards == ()


def test_queue_depths_are_of_the_attempts_under_way() -> None:
    activity = Activity(num_lanes=1)
    with activity.follow("a") as a, activity.follow("b") as b:
        a.begin()
        b.begin()
        a.depths.add(samples=5, batches=1)
        b.depths.add(samples=2)
        assert (activity.status.queued_samples, activity.status.queued_batches) == (7, 1)
        before = a.depths
        a.begin()
        before.add(samples=-5)  # a thread of the first attempt, late
        assert activity.status.queued_samples == 2
    assert activity.status.queued_samples == 0


def test_busy_time_is_a_mean_over_lanes_and_runs_while_a_batch_does() -> None:
    activity = Activity(num_lanes=2)
    with activity.encoding():
        time.sleep(0.1)
        assert 0.05 <= activity.status.lane_busy_s < 0.09
    done = threading.Event()

    def lane() -> None:
        with activity.encoding():
            done.wait(0.1)

    threads = [threading.Thread(target=lane) for _ in range(2)]
    before = activity.status.lane_busy_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.09 <= activity.status.lane_busy_s - before < 0.3
