"""A look at some shards of a corpus before a run: what would be refused, and the shards that would fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tatok_pipe.commands.tokenize_corpus import sample as corpus_sample
from tatok_pipe.commands.tokenize_corpus.sample import look_at_shards
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer
from tatok_pipe.storage import ShardFile

from .pictures import crop_members, hostile_members, small_tokenizer, write_shard
from .test_shard_tokenizer import make_job


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def shard_files(*urls: str) -> list[ShardFile]:
    return [ShardFile(url, Path(url).stat().st_size) for url in urls]


def test_a_look_says_what_a_run_would(checkpoint: str, tmp_path: Path) -> None:
    members, keys, errors = hostile_members()
    crops = crop_members(4)
    apart = sorted(crops, key=lambda member: member[0].rpartition(".")[2])
    shards = shard_files(
        write_shard(tmp_path / "a.tar", [("shot 10.11.png", b"x"), ("shot 10.12.png", b"x")]),
        write_shard(tmp_path / "b.tar", members),
        write_shard(tmp_path / "c.tar", apart),
        write_shard(tmp_path / "d.tar", []),
        write_shard(tmp_path / "e.tar", crops),
    )
    (tmp_path / "e.tar").write_bytes((tmp_path / "e.tar").read_bytes()[:5000])
    job = make_job(checkpoint, tmp_path / "out")
    look = look_at_shards(job, shards)
    assert [Path(shard.url).name for shard in look.good] == ["b.tar", "c.tar"]
    assert look.lines[0] == (
        f"looked into 5 shards: 2 would fail, of {len(keys) + 4 + len(errors)} samples in the others {len(keys) + 4} "
        f"would be rows, {len(errors)} quarantined"
    )
    text = "\n".join(look.lines)
    assert (
        f"would be quarantined 1: BadLabel; first in {tmp_path}/b.tar: 'badlabel': .cls holds 'cat'" in text
    )
    assert f"would fail {tmp_path}/a.tar: none of 1 samples gives a row" in text
    assert f"would fail {tmp_path}/e.tar: cut off" in text
    assert f"note: 1 shard: there is nothing in the shard; first: {tmp_path}/d.tar" in text
    # And the run does.
    tokenize = ShardTokenizer(job, device="cpu", num_threads=1)
    done = {Path(shard.url).name: tokenize(shard.url, max_tries=1) for shard in shards}
    assert {name for name, result in done.items() if result.error} == {"a.tar", "e.tar"}
    assert sum(result.num_images for result in done.values()) == look.num_images
    assert sum(result.num_quarantined for result in done.values()) == look.num_refused


def test_shards_from_all_over_the_list(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = corpus_sample.open_samples
    monkeypatch.setattr(
        corpus_sample,
        "open_samples",
        lambda url, **options: opened.append(Path(url).stem) or real(url, **options),
    )
    monkeypatch.setattr(corpus_sample, "_MAX_SAMPLES", 2)
    shards = shard_files(*(write_shard(tmp_path / f"{i}.tar", crop_members(4)) for i in range(29)))
    job = make_job(checkpoint, tmp_path / "out")
    assert look_at_shards(job, shards).lines == [
        "looked into 8 shards: of 16 samples 16 would be rows, 0 quarantined"
    ]
    assert opened == ["0", "4", "8", "12", "16", "20", "24", "28"]
    opened.clear()
    assert look_at_shards(job, shards[:1]).num_shards == 1
    # Time is bounded: the first shard is looked at in any case.
    monkeypatch.setattr(corpus_sample, "_MAX_LOOK_S", 0.0)
    start = time.monotonic()
    assert look_at_shards(job, shards).num_shards == 1 and time.monotonic() - start < 5
