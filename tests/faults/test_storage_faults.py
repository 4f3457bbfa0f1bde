"""A store that refuses, resets, truncates, delays and forgets to answer: the job takes longer, and that is all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import job
from tests.faults.injector import Injector
from tests.faults.proxy import KINDS, FaultProxy, Faults, measure_latency_s
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


def test_a_bad_day_of_the_store_changes_nothing(world: World, tmp_path: Path) -> None:
    output = f"s3://{world.server.bucket}/faults/bad-day"
    injector = Injector(tmp_path)
    with FaultProxy(world.server.endpoint_url) as proxy:
        plain_s = measure_latency_s(proxy.endpoint_url)
        proxy.faults = Faults(*(0.05,) * len(KINDS), latency_s=2 * 9 * plain_s, seed=5)
        env = {**world.server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url}
        done = job.run(
            world.arguments(world.tiny_s3, output, "actors.max=2", "actors.cpus=1"),
            env={**env, **injector.environment()}, folder=tmp_path,
        )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    print(
        f"{done.seconds:.1f} s, latency {plain_s:.4f} s plain; of {len(proxy.exchanges)}: {dict(proxy.injected)}"
    )
    assert set(proxy.injected) == set(KINDS), "some kind was never injected"
    with job.environment(world.server.environment()):
        assert job.digests(output) == world.expect(world.tiny_s3)
        assert job.summary(output)["failed_shards"] == {}
    assert len(injector.attempts()) == len(world.tiny_s3.numbers)
