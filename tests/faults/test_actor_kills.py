"""SIGKILL of an actor at every point of a shard's way: the shard is done again, and nobody sees that it was."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.proxy import FaultProxy, Faults
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3]

POINTS = ("get", "tar", "decode", "encode", "parquet", "before_put", "inside_put", "after_put")
OUTPUT = "actor-kills"


@dataclass(frozen=True)
class LostFirstAnswers(Faults):
    """The answer to the first PUT of each of these shards is lost."""

    shards: tuple[str, ...] = ()

    def draw(self, method: str, path: str, attempt: int) -> tuple[str, float]:
        is_put = method == "PUT" and any(f"/{OUTPUT}/data/{shard}" in path for shard in self.shards)
        return ("lost_answer" if is_put and attempt == 1 else ""), 0.0


class KillWriter:
    """A hook of the proxy: ends the process that uploads a shard when half of the body came, once."""

    def __init__(self, shard: str, injector: Injector) -> None:
        self._shard, self._injector = shard, injector
        self.killed: list[int] = []

    def __call__(self, method: str, path: str, progress: float) -> Literal["cut"] | None:
        if method != "PUT" or f"/{OUTPUT}/data/{self._shard}" not in path or progress < 0.5 or self.killed:
            return None
        writers = [event for event in self._injector.events("before_put") if event.shard == self._shard]
        self.killed.append(writers[-1].pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(writers[-1].pid, signal.SIGKILL)
        return "cut"  # what the kernel has sent already is all that the store gets


@pytest.mark.slow
def test_an_actor_killed_at_any_point_costs_no_more_than_its_shards_again(
    world: World, tmp_path: Path
) -> None:
    corpus = world.s3
    by_point = dict(zip(POINTS, corpus.numbers, strict=False))
    unharmed = tuple(corpus.numbers[len(POINTS) :])
    injector = Injector(
        tmp_path, [Fault(point, "sigkill", by_point[point]) for point in POINTS if point != "inside_put"]
    )
    output = f"s3://{world.server.bucket}/faults/{OUTPUT}"
    killer = KillWriter(by_point["inside_put"], injector)
    faults = LostFirstAnswers(shards=unharmed)
    with FaultProxy(world.server.endpoint_url, faults, on_request=killer) as proxy:
        env = {**world.server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url}
        done = job.run(
            world.arguments(corpus, output, "actors.max=2", "actors.cpus=1"),
            env={**env, **injector.environment()}, folder=tmp_path,
        )  # fmt: skip
    attempts, commits = injector.attempts(), injector.events("after_put")
    print(f"{done.seconds:.1f} s, begun {attempts}, {dict(proxy.injected)}")
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    injector.check()
    assert len(killer.killed) == 1 and proxy.injected["cut"] == 1
    with job.environment(world.server.environment()):
        assert job.digests(output) == world.expect(corpus)
        assert job.summary(output)["failed_shards"] == {}
    for point, shard in by_point.items():
        # What was published before the kill may be found instead of made again.
        assert (1 if point == "after_put" else 2) <= attempts[shard] <= 3, f"{point}: {attempts}"
    assert max(attempts.values()) <= 3, attempts
    # Every shard was published by one attempt, and that attempt knew, though its answer was lost; but for one that was
    # killed, for another shard that it had in hand, while its answer was on the way.
    known = Counter(event.shard for event in commits if event.won)
    assert set(known.values()) == {1}, known
    killed = {event.pid for fault in injector.faults for event in injector.fired(fault)} | set(killer.killed)
    sent = {(event.shard, event.pid) for event in injector.events("before_put")}
    told = {(event.shard, event.pid) for event in commits}
    for shard in set(corpus.numbers) - set(known):
        assert any(each == shard and pid in killed for each, pid in sent - told), (shard, known)
    assert proxy.injected["lost_answer"] == len(unharmed)
