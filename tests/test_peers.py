"""The peers of the benchmarks do the same work: as many rows as images, and the same tokens of the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.records import TokenRecord
from tests.benchmarks import peers_bench
from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import Gate, Row

Tokens = dict[str, Row | TokenRecord]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> peers_bench.Corpus:
    """Of 51 images: three full batches and one that is not."""
    folder = tmp_path_factory.mktemp("peers")
    demo = write_demo_corpus(folder / "demo", num_shards=2, crops_per_source=3)
    return peers_bench._with_files(folder / "demo", demo.shards, demo.num_images)


@pytest.fixture(scope="module")
def ours(corpus: peers_bench.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    tokens = run_side("ours", corpus, tmp_path_factory.mktemp("ours") / "out")
    assert len(tokens) == corpus.num_images
    return tokens


def run_side(name: str, corpus: peers_bench.Corpus, output: Path) -> Tokens:
    side = peers_bench.run_side(name, "model", corpus, output)
    assert side.images_per_s > 0 and side.peak_bytes > 0
    return peers_bench.read_tokens(output)


def peers() -> list[Any]:
    """Names, those skipped for which no Python is named."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                peer.python is None, reason=f"{peer.program.python} names no Python that has {name}"
            ),
        )
        for name, peer in peers_bench.PEERS["model"].items()
    ]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", peers())
def test_a_peer_has_our_tokens(name: str, corpus: peers_bench.Corpus, ours: Tokens, tmp_path: Path) -> None:
    peers_bench.check_equal(name, run_side(name, corpus, tmp_path / "out"), ours)


def test_a_side_is_left_out_where_no_python_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAFT_PYTHON", raising=False)
    monkeypatch.setenv("LITDATA_PYTHON", "/opt/python")
    python = {name: peer.python for name, peer in peers_bench.PEERS["null"].items()}
    assert python["daft"] is None and python["litdata"] == "/opt/python"
    assert [name for name, value in python.items() if value is None] == ["daft"]


def test_processes_wait_until_all_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_MAX_START_S", 0)
    with pytest.raises(TimeoutError, match="1 of 2 processes"):
        Gate(tmp_path / "ready", 2).wait()
    (tmp_path / "ready" / "another").touch()
    Gate(tmp_path / "ready", 2).wait()
