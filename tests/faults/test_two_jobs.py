"""Two jobs at once on one output: of every shard one attempt wins, and both jobs are right about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.proxy import FaultProxy
from tests.faults.world import NUM_TINY_IMAGES, NUM_TINY_SHARDS, World

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["s3", "local"])
def test_of_two_jobs_one_wins_each_shard(world: World, tmp_path: Path, where: str) -> None:
    # Both wait for each other before every commit, so that each is decided by a race and not by a listing.
    injector = Injector(tmp_path, [Fault("before_put", "meet:2", times=None)])
    with FaultProxy(world.server.endpoint_url) as proxy:
        env = {**world.server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url}
        corpus, output = world.tiny_local, str(tmp_path / "out")
        if where == "s3":
            corpus, output = world.tiny_s3, f"s3://{world.server.bucket}/faults/two-jobs"
        arguments = world.arguments(corpus, output, "actors.max=1", "actors.cpus=1")
        with job.environment(env):
            with (
                job.Job(arguments, env=injector.environment(), folder=tmp_path) as first,
                job.Job(arguments, env=injector.environment(), folder=tmp_path) as second,
            ):
                ends = [first.wait(), second.wait()]
            found, summary = job.digests(output), job.summary(output)
    injector.check()
    for end in ends:
        assert end.code == 0, end.stderr
        assert "Traceback" not in end.stderr
        assert f"{NUM_TINY_SHARDS} of {NUM_TINY_SHARDS} shards" in end.stderr
    assert found == world.expect(corpus)
    commits = injector.events("after_put")
    assert Counter(event.shard for event in commits if event.won) == dict.fromkeys(corpus.numbers, 1)
    assert Counter(event.shard for event in commits) == dict.fromkeys(corpus.numbers, 2)
    winners = Counter(event.pid for event in commits if event.won)
    print("shards won by each job:", sorted(winners.values()), "; seconds:", [end.seconds for end in ends])
    if where == "s3":
        puts = [each for each in proxy.exchanges if each.method == "PUT" and "/two-jobs/data/" in each.path]
        assert (
            sorted(Counter(each.path for each in puts if each.status == 200).values())
            == [1] * NUM_TINY_SHARDS
        )
    statistics = summary["statistics"]
    assert (summary["num_shards_planned"], summary["num_shards_committed"]) == (NUM_TINY_SHARDS,) * 2
    assert (summary["missing_shards"], summary["failed_shards"]) == ([], {})
    assert statistics["num_images"] == NUM_TINY_SHARDS * NUM_TINY_IMAGES
    assert statistics["num_quarantined"] == NUM_TINY_SHARDS
