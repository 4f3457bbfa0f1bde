"""SIGTERM, as a batch scheduler sends it: nothing new is begun, and the same command does the rest."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NOTICE_S = 5.0  # after which no shard may be begun


def test_sigterm_lets_shards_in_work_finish_and_begins_no_other(world: World, tmp_path: Path) -> None:
    injector = Injector(tmp_path, [Fault("encode", "sleep:0.7", times=None)])
    output = str(tmp_path / "out")
    expected = world.expect(world.local)
    arguments = world.arguments(world.local, output, "actors.max=1", "actors.cpus=1")
    with job.Job(arguments, env=injector.environment(), folder=tmp_path) as running:
        running.wait_until(lambda: len(job.committed(output)) >= 2, what="two shards are done")
        told = time.time()
        running.process.send_signal(signal.SIGTERM)
        stopped = running.wait(60)
    took = time.time() - told
    late = [event.shard for event in injector.events("begin") if event.time > told + NOTICE_S]
    attempts, num_done = sum(injector.attempts().values()), len(job.committed(output))
    print(f"ended after {took:.1f} s; {attempts} begun, {num_done} done; late: {late}")
    assert stopped.code == 4, stopped.stderr
    assert "the same command does the rest" in stopped.stderr and "Traceback" not in stopped.stderr
    assert not late
    assert 2 <= num_done < len(world.local.numbers)
    assert job.digests(output).items() <= expected.items()
    done = job.run(arguments, env=injector.environment(), folder=tmp_path)
    assert done.code == 0, done.stderr
    assert f"{num_done} done before" in done.stderr
    assert job.digests(output) == expected
    # What was in work at the signal was finished; at most the shard read ahead of its turn is read again.
    assert sum(injector.attempts().values()) <= len(world.local.numbers) + 1
