"""The peers of the benchmarks do the same work: as many rows as images, and the same tokens of the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.records import TokenRecord
from tests.benchmarks import peers_bench
from tests.benchmarks.peers.common import Row


@pytest.mark.ray
@pytest.mark.slow
def test_every_peer_has_our_tokens(tmp_path: Path) -> None:
    demo = write_demo_corpus(tmp_path / "demo", num_shards=2, crops_per_source=3)
    corpus = peers_bench._with_files(tmp_path / "demo", demo.shards, demo.num_images)
    (tmp_path / "out").mkdir()

    def tokens(name: str) -> dict[str, Row | TokenRecord]:
        side = peers_bench.run_side(name, "model", corpus, tmp_path / "out" / name)
        assert side.images_per_s > 0 and side.peak_bytes > 0
        return peers_bench.read_tokens(tmp_path / "out" / name)

    ours = tokens("ours")
    assert len(ours) == corpus.num_images
    for name in peers_bench.PEERS["model"]:
        peers_bench.check_equal(name, tokens(name), ours)
