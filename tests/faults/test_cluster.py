"""Several nodes, one of which dies, one comes and one is drained while the job runs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.nodes import cluster, drain
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NOTICE_S = 5.0  # after which no shard may be begun on a node that is drained
SHARDS_PER_ACTOR = 2  # one that it works on, one that it reads ahead


def test_nodes_that_die_come_and_are_drained(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="ray")
    injector = Injector(tmp_path, [Fault("encode", "sleep:2", times=None)])
    output = str(tmp_path / "out")
    corpus = world.tiny_local
    with cluster(injector.environment()) as nodes:
        large = nodes.add_node(num_cpus=2)
        doomed, drained = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
        arguments = world.arguments(corpus, output, "actors.min=4", "actors.max=4", "actors.cpus=1")
        env = {**injector.environment(), "RAY_ADDRESS": nodes.address}
        with job.Job(arguments, env=env, folder=tmp_path) as running:
            running.wait_until(
                lambda: {doomed.node_id, drained.node_id} <= {event.node for event in injector.events("after_put")},
                what="the nodes that are to go have done a shard each",
            )  # fmt: skip
            nodes.remove_node(doomed, allow_graceful=False)
            removed_at = time.time()
            new = nodes.add_node(num_cpus=1)
            drain(nodes.address, drained.node_id, deadline_s=60)
            drained_at = time.time()
            done = running.wait()
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    injector.check()
    assert job.digests(output) == world.expect(corpus)
    assert job.summary(output)["failed_shards"] == {}

    begins = injector.begun()
    on_node = Counter(event.node for event in begins)
    names = {large.node_id: "large", doomed.node_id: "doomed", drained.node_id: "drained", new.node_id: "new"}
    late = [event for event in begins if event.node == drained.node_id and event.time > drained_at + NOTICE_S]
    again = {shard for shard, times in injector.attempts().items() if times > 1}
    from_doomed = {event.shard for event in begins if event.node == doomed.node_id} & again
    from_drained = {event.shard for event in begins if event.node == drained.node_id} & again
    print(
        f"{done.seconds:.1f} s, {time.time() - removed_at:.1f} s after the node died; begun "
        f"{ {names[node]: count for node, count in on_node.items()} }; begun again: from the dead node "
        f"{sorted(from_doomed)}, from the drained one {sorted(from_drained)}"
    )
    assert not late, f"begun on a node {NOTICE_S:g} s after it was drained: {late}"
    assert on_node[new.node_id] > 0, "the new node got no shard"
    assert max(injector.attempts().values()) <= 2
    assert len(from_doomed) <= SHARDS_PER_ACTOR
    # The drained node ends its shard in work; the one it read ahead goes elsewhere.
    assert len(from_drained) <= SHARDS_PER_ACTOR - 1
    assert again <= from_doomed | from_drained
