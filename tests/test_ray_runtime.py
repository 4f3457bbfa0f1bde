"""What the runtime does without a cluster: an actor that cannot start, the progress board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import PreprocessConfig
from tatok_pipe.images.shards import ShardLimits
from tatok_pipe.ray_runtime import ActorPlan, ActorsConfig, ProgressBoard, TokenizerActor, WorkersConfig
from tatok_pipe.shard_tokenizer import Progress, ShardJob
from tatok_pipe.tokenize_corpus import TokenizeCorpusConfig, format_duration, make_spec, progress_line
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig
from tatok_pipe.tokenizer.model import StackConfig, TaTok, TaTokConfig

from .pictures import small_tokenizer


def make_job(checkpoint: str) -> ShardJob:
    tokenizer = load_tokenizer(checkpoint)
    config = replace(
        TokenizeCorpusConfig(),
        encode=replace(TokenizeCorpusConfig().encode, precision="fp32", batch_size=4),
    )
    return ShardJob(
        checkpoint=checkpoint,
        output_url="unused",
        spec=make_spec(config, tokenizer),
        filter=tokenizer.filter(DTFConfig()),
        preprocess=PreprocessConfig(image_size=32),
        limits=ShardLimits(),
        precision="fp32",
        batch_size=4,
        mutual_information=False,
        patch_entropy=False,
    )


def test_an_actor_that_cannot_start_fails_its_shards_and_says_why(tmp_path: Path) -> None:
    job = make_job(small_tokenizer(tmp_path / "tokenizer"))
    plan = ActorPlan(min=1, max=1, cpus=1, gpus=0)
    url = {"url": np.array(["s3://bucket/a.tar"])}
    for broken, reason in (
        (replace(job, checkpoint=str(tmp_path / "gone")), "expected a folder"),
        (replace(job, spec=replace(job.spec, tokenizer_fingerprint="0" * 64)), "planned with 000000000000"),
    ):
        row = TokenizerActor(broken, plan, board=None)(url)
        assert row["url"] == ["s3://bucket/a.tar"]
        assert row["error"][0].startswith("the actor cannot start: ") and reason in row["error"][0]


def test_a_tokenizer_without_globals_is_refused_for_datasets(tmp_path: Path) -> None:
    stack = StackConfig(width=32, depth=1, heads=2)
    model = TaTok(
        TaTokConfig(image_size=32, patch_size=8, num_globals=0, encoder=stack, decoder=stack, prior=stack)
    )
    save_tokenizer(str(tmp_path), model, ladders={}, training={})
    config = replace(TokenizeCorpusConfig(), dtf=DTFConfig(value=1.0))
    with pytest.raises(UserError, match="no global tokens"):
        make_spec(config, load_tokenizer(str(tmp_path)))


def test_the_board_adds_up_shards_of_several_actors() -> None:
    board = ProgressBoard()
    board.add("a", Progress(4, 40, 1, 0.5))
    board.add("b", Progress(2, 30, 0, 0.25))
    board.add("a", Progress(4, 44, 0, 0.75))
    assert board.read() == Progress(10, 114, 1, 1.0)
    board.done("a")
    assert board.read() == Progress(10, 114, 1, 0.25)


def test_progress_tells_rate_and_time_left() -> None:
    line = progress_line(Progress(300, 12_000, 2, 0.5), 1, 6, seconds=10)
    assert line == "1/6 shards, 300 images, 30.0 images/s, 40.0 tokens/image, 2 quarantined, 30 s left"
    assert progress_line(Progress(0, 0, 0, 0.0), 0, 6, seconds=10).endswith(
        "0.0 tokens/image, 0 quarantined, ? left"
    )
    assert [format_duration(s) for s in (0.4, 59.6, 61, 3725)] == [
        "0 s",
        "1 min 00 s",
        "1 min 01 s",
        "1 h 02 min",
    ]


@pytest.mark.parametrize("options", [{"min": 0}, {"min": 3, "max": 2}, {"cpus": 0.0}, {"gpus": -1.0}])
def test_impossible_pools_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ActorsConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        WorkersConfig(count=0)
