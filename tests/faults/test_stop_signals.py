"""SIGTERM as a batch scheduler sends it, SIGHUP and Ctrl-C: nothing new is begun, the same command does the rest."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tatok_pipe.runs.job import SUMMARY
from tatok_pipe.runs.stop_signal import INTERRUPTED
from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NOTICE_S = 5.0  # after which no shard may be begun
LINGER_S = 3  # that a driver stays at the point where the signal meets it
END_S = 90.0  # Ray is started to the end before a signal counts, which takes a busy machine long


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
    late = [event.shard for event in injector.begun() if event.time > told + NOTICE_S]
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


@contextmanager
def as_in_a_terminal() -> Iterator[None]:
    """What is started in the block ignores no signal, as it would where the tests run under nohup or a shell's `&`."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("list", signal.SIGTERM), ("list", signal.SIGHUP), ("plan", signal.SIGTERM), ("plan", signal.SIGINT),
        ("start", signal.SIGTERM), ("start", signal.SIGHUP), ("start", signal.SIGINT),
        ("finish", signal.SIGTERM), ("finish", signal.SIGHUP), ("finish", signal.SIGINT),
    ],
)  # fmt: skip
def test_a_signal_while_the_driver_is_alone(
    world: World, tmp_path: Path, point: str, number: signal.Signals
) -> None:
    fault = Fault(point, f"sleep:{LINGER_S}")
    injector = Injector(tmp_path, [fault])
    output = tmp_path / "out"
    arguments = world.arguments(world.local, str(output), "actors.max=1", "actors.cpus=1")
    with as_in_a_terminal():
        started = job.Job(arguments, env=injector.environment(), folder=tmp_path)
    with started as running:
        running.wait_until(lambda: bool(injector.fired(fault)), what=f"it is at {point}")
        told = time.time()
        if number == signal.SIGINT:
            os.killpg(running.process.pid, number)  # as a terminal does it: everybody gets it
        else:
            running.process.send_signal(number)
        stopped = running.wait(END_S)
        took = time.time() - told
        left = running.left_over(within_s=20)
    print(f"ended after {took:.1f} s")
    assert stopped.code == 4, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not left
    *_, summary, line = stopped.stderr.splitlines()
    assert line == INTERRUPTED
    assert json.loads(summary.partition(SUMMARY)[2])["status"] == "interrupted"
    assert (job.committed(str(output)) if (output / "data").exists() else []) == (
        world.local.numbers if point == "finish" else []
    )
    if point == "finish":
        done = job.run(arguments, env={}, folder=tmp_path)
        assert done.code == 0, done.stderr
        assert job.digests(str(output)) == world.expect(world.local)
        assert job.summary(str(output))["missing_shards"] == []
