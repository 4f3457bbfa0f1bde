"""The job's metrics, as Prometheus would scrape them from a cluster's node."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from .pictures import crop_members, small_tokenizer, write_shard

pytestmark = pytest.mark.ray

NUM_SHARDS = 12
IMAGES = 200  # a shard


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def scrape(port: int) -> dict[str, float]:
    """Sums over label sets, by metric; tatok's only."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(ray_tatok_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
        assert ".tar" not in labels  # a label per shard would drown the server
        found[name] = found.get(name, 0.0) + float(value)
    return found


@pytest.mark.slow
def test_counters_and_gauges_reach_the_scraper(tmp_path: Path) -> None:
    members = crop_members(10)
    for shard in range(NUM_SHARDS):
        copies = [(f"{copy}-{name}", data) for copy in range(IMAGES // 10) for name, data in members]
        write_shard(tmp_path / f"{shard:06d}.tar", [*copies, ("bad.jpg", b"")])
    checkpoint = small_tokenizer(tmp_path / "tokenizer")
    port = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "metrics_export_port": port, "include_dashboard": False},
    )
    seen: dict[str, float] = {}
    try:
        job = subprocess.Popen(
            [
                sys.executable, "-m", "tatok_pipe.tokenize_corpus", f"input.shards={tmp_path}/*.tar",
                f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}", "actors.cpus=1", "actors.max=1",
            ],
            env={**os.environ, "RAY_ADDRESS": str(cluster.address)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while job.poll() is None and time.monotonic() < deadline:
            try:
                for name, value in scrape(port).items():
                    seen[name] = max(seen.get(name, 0.0), value)
            except OSError:
                pass  # the node's exporter starts after the node
            time.sleep(0.5)
        _, stderr = job.communicate(timeout=10)
        assert job.returncode == 0, stderr
    finally:
        cluster.shutdown()
    assert 1 <= seen["ray_tatok_shards_total"] <= NUM_SHARDS
    assert IMAGES <= seen["ray_tatok_images_total"] <= NUM_SHARDS * IMAGES
    assert seen["ray_tatok_tokens_total"] > seen["ray_tatok_images_total"]
    assert 1 <= seen["ray_tatok_quarantined_total"] <= NUM_SHARDS
    assert seen["ray_tatok_read_bytes_total"] > seen["ray_tatok_written_bytes_total"] > 0
    assert 0.1 < seen["ray_tatok_device_busy_share"] <= 1
    assert seen["ray_tatok_queue_depth"] > 0
    assert 0 < seen["ray_tatok_shards_left"] <= NUM_SHARDS
    assert seen["ray_tatok_actors"] == 1
