"""A cluster of several nodes on this machine, and the notice that one of them will go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults import job


@contextmanager
def cluster(env: dict[str, str]) -> Iterator[Any]:
    """A head without CPUs; its nodes' processes inherit `env`."""
    from ray.cluster_utils import Cluster  # here, so that tests which are not selected do not wait for it

    with job.environment(env):
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield nodes
        finally:
            nodes.shutdown()


def drain(address: str, node_id: str, *, deadline_s: float) -> None:
    """What a cloud's notice of preemption makes an autoscaler do."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION  # pyright: ignore[reportAttributeAccessIssue]
    deadline_ms = int((time.time() + deadline_s) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "a test", deadline_ms)
    assert accepted, why
