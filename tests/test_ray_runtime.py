"""What the runtime does without a cluster: an actor that cannot start, plans of actors, lines of progress."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe.commands.tokenize_corpus.options import OutputConfig, TokenizeCorpusConfig
from tatok_pipe.commands.tokenize_corpus.setup import make_spec
from tatok_pipe.encoding.shard_tokenizer import TokenizeJob
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.ray_runtime import actor_plan
from tatok_pipe.ray_runtime.actor_plan import ActorPlan, plan_actors, prefer_many
from tatok_pipe.ray_runtime.options import ActorsConfig, ElasticWorkersConfig, WorkersConfig
from tatok_pipe.ray_runtime.shard_actor import ShardActor
from tatok_pipe.ray_runtime.training import STORAGE_MARKER, _check_writable, plan_workers
from tatok_pipe.runs.progress import RunState, format_duration, progress_line
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import DTFConfig

from .pictures import small_tokenizer


def make_job(checkpoint: str) -> TokenizeJob:
    tokenizer = load_tokenizer(checkpoint)
    config = replace(
        TokenizeCorpusConfig(),
        output=OutputConfig("unused"),
        encode=replace(TokenizeCorpusConfig().encode, precision="fp32", batch_size=4),
    )
    return TokenizeJob(
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


def test_an_actor_that_cannot_start_says_why(tmp_path: Path) -> None:
    job = make_job(small_tokenizer(tmp_path / "tokenizer"))
    plan = ActorPlan(min=1, max=1, cpus=1, gpus=0)
    for broken, reason in (
        (replace(job, checkpoint=str(tmp_path / "gone")), "expected a folder"),
        (replace(job, spec=replace(job.spec, tokenizer_fingerprint="0" * 64)), "planned with 000000000000"),
    ):
        assert reason in ShardActor(broken, plan)._error


def test_progress_tells_rate_and_time_left() -> None:
    state = RunState(
        num_shards=6, num_done=1, num_failed=0, num_images=300, num_tokens=12_000, num_quarantined=2,
        bytes_in=0, bytes_out=0, num_actors=1, num_actors_wanted=1, share=0.5, seconds=10,
    )  # fmt: skip
    line = progress_line(state)
    assert line == "1/6 shards, 300 images, 30.0 images/s, 40.0 tokens/image, 2 quarantined, 30 s left"
    line = progress_line(replace(state, num_failed=1, num_actors=3, num_actors_wanted=4))
    assert line.startswith("1/6 shards, 1 failed, 300 images") and "3 of 4 actors" in line
    nothing = replace(state, num_done=0, num_images=0, num_tokens=0, num_quarantined=0, share=0.0)
    assert progress_line(nothing).endswith("0 images, 0.0 images/s, 0 quarantined, ? left")
    untold = progress_line(replace(state, num_tokens=0), has_quarantine=False)
    assert untold == "1/6 shards, 300 images, 30.0 images/s, 30 s left"
    line = progress_line(state, row_name="crop")
    assert line == "1/6 shards, 300 crops, 30.0 crops/s, 40.0 tokens/crop, 2 quarantined, 30 s left"
    assert [format_duration(s) for s in (0.4, 59.6, 61, 3725)] == [
        "0 s",
        "1 min 00 s",
        "1 min 01 s",
        "1 h 02 min",
    ]


@pytest.mark.parametrize(
    "options", [{"min": 0}, {"min": 3, "max": 2}, {"cpus": 0.0}, {"gpus": -1.0}, {"memory_gib": 0.0}]
)
def test_impossible_pools_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ActorsConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        WorkersConfig(count=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min": 0}, "^min=0: expected at least 1$"),
        ({"cpus": 0.0}, "^cpus=0.0: expected more than 0$"),
        ({"cpus": -1.0}, "^cpus=-1.0: expected more than 0$"),
        ({"max_failures": -1}, "^max_failures=-1: expected at least 0$"),
        ({"min": 3, "max": 2}, "max=2: expected at least min=3"),
        ({"max": 0}, "max=0: expected at least min=1"),
    ],
)
def test_impossible_groups_of_workers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticWorkersConfig(**options)


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        ({}, 0, (1, 1)),
        ({}, 8, (1, 8)),
        ({"min": 2, "max": 4}, 0, (2, 4)),
        ({"max": 2}, 8, (1, 2)),
        ({"min": 16}, 8, (16, 16)),  # more than there are now
        ({"min": 4}, 0, (4, 4)),
    ],
)
@pytest.mark.parametrize("where", ["cluster", "machine"])
def test_a_group_has_a_worker_for_each_gpu(
    options: dict[str, Any],
    gpus: float,
    expected: tuple[int, int],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_ray = where == "cluster"
    monkeypatch.setattr("ray.is_initialized", lambda: has_ray)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3 if has_ray else gpus)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": gpus} if gpus else {}))
    assert plan_workers(ElasticWorkersConfig(**options)) == expected


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"output.url={tmp_path}/file: cannot be written: Not a directory"):
        _check_writable(f"{tmp_path}/file")
    _check_writable(f"{tmp_path}/folder")
    assert (tmp_path / "folder/checkpoints" / STORAGE_MARKER).exists()


GPU_NODE = {"CPU": 32.0, "GPU": 4.0, "memory": 256.0 * 2**30}
CPU_NODE = {"CPU": 8.0, "memory": 16.0 * 2**30}
HEAD = {"memory": 8.0 * 2**30}


@pytest.mark.parametrize(
    ("nodes", "growable", "config", "expected"),
    [
        # One GPU and its share of the cores an actor; the CPU node takes no part.
        ([HEAD, GPU_NODE, CPU_NODE], [], {}, (4, 8.0, 1.0)),
        ([GPU_NODE, GPU_NODE], [], {"gpus": 0.5, "max": 100}, (100, 4.0, 0.5)),
        # Nodes of different sizes: an actor fits the smaller one.
        ([HEAD, CPU_NODE, {"CPU": 3.0}], [], {}, (3, 3.0, 0.0)),
        ([CPU_NODE], [], {"max": 8}, (8, 1.0, 0.0)),
        ([CPU_NODE], [], {"cpus": 2.0, "memory_gib": 8.0}, (2, 2.0, 0.0)),
        # A cluster that grows from nothing.
        ([HEAD], [GPU_NODE], {"max": 16}, (16, 8.0, 1.0)),
        ([HEAD], [GPU_NODE], {}, (1, 8.0, 1.0)),
    ],
)
def test_actors_fit_the_cluster(
    nodes: list[dict[str, float]],
    growable: list[dict[str, float]],
    config: dict[str, float],
    expected: tuple[int, float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor_plan, "node_resources", lambda: nodes)
    monkeypatch.setattr(actor_plan, "growable_resources", lambda: growable)
    monkeypatch.setattr(actor_plan, "has_gpu", lambda: any("GPU" in node for node in nodes + growable))
    plan = plan_actors(ActorsConfig(**config), num_shards=1000)  # type: ignore[arg-type]
    assert (plan.max, plan.cpus, plan.gpus) == expected
    assert plan_actors(ActorsConfig(**config), num_shards=2).max <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gpus": 1.0}, "actors.gpus=1"),
        ({"cpus": 9.0}, "largest have 8 CPUs"),
        ({"memory_gib": 17.0}, "16.0 GiB"),
    ],
)
def test_actors_that_fit_nowhere_are_refused(
    config: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_plan, "node_resources", lambda: [CPU_NODE])
    monkeypatch.setattr(actor_plan, "growable_resources", lambda: [])
    monkeypatch.setattr(actor_plan, "has_gpu", lambda: False)
    with pytest.raises(UserError, match=message):
        plan_actors(ActorsConfig(**config), num_shards=10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "num_shards", "has_gpu", "expected"),
    [
        ({}, 100, False, 1.0),  # more shards than cores: an actor for each core
        ({}, 3, False, 2.0),  # eight cores for three
        ({}, 1, False, 4.0),
        ({"max": 2}, 100, False, 4.0),
        ({"cpus": 3.0}, 100, False, 3.0),  # what was asked for stands
        ({}, 100, True, None),
    ],
)
def test_many_small_actors_where_threads_would_wait(
    config: dict[str, float],
    num_shards: int,
    has_gpu: bool,
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor_plan, "node_resources", lambda: [HEAD, CPU_NODE])
    monkeypatch.setattr(actor_plan, "has_gpu", lambda: has_gpu)
    found = prefer_many(ActorsConfig(**config), num_shards=num_shards)  # type: ignore[arg-type]
    assert found.cpus == expected
