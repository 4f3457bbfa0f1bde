"""The driver is killed again and again, alone and with all that it started; the same command gets it done."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_KILLS = 10


def test_a_driver_that_is_killed_at_any_moment(world: World, tmp_path: Path) -> None:
    dice = random.Random(NUM_KILLS)
    injector = Injector(tmp_path, [Fault("encode", "sleep:0.4", times=None)])
    output = str(tmp_path / "out")
    expected = world.expect(world.local)
    arguments = world.arguments(world.local, output, "actors.max=1", "actors.cpus=1")
    num_done = []
    for kill in range(NUM_KILLS):
        with job.Job(arguments, env=injector.environment(), folder=tmp_path) as running:
            begun = len(injector.begun())
            running.wait_until(lambda begun=begun: len(injector.begun()) > begun, what="a shard is begun")
            time.sleep(dice.uniform(0, 0.8))
            # Alone, the driver's raylet and actors end by themselves; or all of it goes at once, as a node does.
            running.kill(group=kill % 2 == 1)
            left = running.left_over(within_s=30)
            assert not left, f"outlived the driver by 30 s: {left}"
        found = job.digests(output)
        assert found.items() <= expected.items(), "a file that is there is whole and right at any time"
        num_done.append(len(job.committed(output)))
    print("shards done after each kill:", num_done)
    assert num_done[0] < len(world.local.numbers), "killed too late to show anything"
    done = job.run(arguments, env=injector.environment(), folder=tmp_path)
    injector.check()
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{num_done[-1]} done before" in done.stderr
    assert job.digests(output) == expected
    # An actor has at most two shards at a time: one that it tokenizes and one that it reads ahead.
    attempts = injector.attempts()
    print(f"begun {sum(attempts.values())} times: {attempts}")
    assert sum(attempts.values()) <= len(world.local.numbers) + 2 * NUM_KILLS
