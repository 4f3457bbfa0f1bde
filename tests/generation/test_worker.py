"""Shards of images through generator, tokenizer and disk, without Ray: bytes that depend on the plan and the models
alone, and errors that stay with their shard."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.generation.exports import decode
from tatok_pipe.ar.generation.job import GenerationPlan, Requests, StartPlan
from tatok_pipe.ar.generation.layout import (
    GeneratedImage,
    committed_shards,
    read_rows,
    read_shard,
    shard_name,
)
from tatok_pipe.ar.generation.worker import GenerateJob, ImageWorker
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.sampler import Sampler
from tatok_pipe.ar.steps import suiting_steps
from tatok_pipe.runs.shard_work import ShardResult
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset
from tests.generation.models import CLASSES, TOKENIZER, Models, save_models
from tests.token_datasets import make_rows, write_token_dataset

# Shards of a whole group of images that are decoded together, and a part of one; the last shard is shorter.
PLAN = GenerationPlan(
    num_images=37,
    images_per_shard=17,
    seed=0,
    classes=(3, 1, 4),
    sampling=SamplingConfig(codes=DrawConfig(guidance=1.5)),
    num_patches=None,
    embeddings_url=None,
    start=None,
)
NAMES = [shard_name(index) for index in range(PLAN.num_shards)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return save_models(tmp_path_factory.mktemp("models"))


def make_job(models: Models, output: Path, **changes: Any) -> GenerateJob:
    job = GenerateJob(
        generator=models.generator,
        tokenizer=models.tokenizer,
        generator_fingerprint=load_generator(models.generator).fingerprint,
        tokenizer_fingerprint=models.spec.tokenizer_fingerprint,
        output_url=str(output),
        plan=PLAN,
        layout="files",
        image_format="png",
        num_slots=4,
        precision="fp32",
        steps=suiting_steps("cpu", "fp32"),
    )
    return replace(job, **changes)


def start(job: GenerateJob, *, num_threads: int = 1) -> ImageWorker:
    return job.start_worker(device="cpu", num_threads=num_threads)


def make(worker: ImageWorker, name: str) -> ShardResult:
    return worker(name, max_tries=1)


def digest(output: Path) -> dict[str, str]:
    files = [path for path in output.rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def images_of(job: GenerateJob, names: list[str]) -> list[GeneratedImage]:
    options = {"layout": job.layout, "image_format": job.image_format}
    return [image for name in names for image in read_shard(job.output_url, name, **options)]


@pytest.fixture(scope="module")
def alone(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one shard after the other."""
    output = tmp_path_factory.mktemp("alone")
    worker = start(make_job(models, output))
    assert [make(worker, name).error for name in NAMES] == [""] * 3
    return output


@pytest.mark.parametrize(("num_slots", "num_threads"), [(4, 1), (4, 2), (1, 1), (7, 2), (64, 1)])
def test_bytes_do_not_depend_on_what_is_made_beside(
    models: Models, alone: Path, tmp_path: Path, num_slots: int, num_threads: int
) -> None:
    try:
        worker = start(make_job(models, tmp_path, num_slots=num_slots), num_threads=num_threads)
        together = threading.Barrier(2)

        def work(names: list[str]) -> list[ShardResult]:
            together.wait()
            return [make(worker, name) for name in names]

        with ThreadPoolExecutor(2) as pool:
            results = [*pool.map(work, ([NAMES[0]], [NAMES[2], NAMES[1]]))]
    finally:
        torch.set_num_threads(1)
    assert [result.error for each in results for result in each] == [""] * 3
    assert digest(tmp_path) == digest(alone)
    assert len(set(digest(alone).values())) == 37 + 3  # no two images are alike


@pytest.mark.parametrize("change", [{"seed": 1}, {"classes": (3, 1)}, {"sampling": SamplingConfig()}])
def test_another_plan_gives_other_images(
    models: Models, alone: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    worker = start(make_job(models, tmp_path, plan=replace(PLAN, **change)))
    assert make(worker, NAMES[2]).error == ""
    expected = digest(alone)
    assert all(mark != expected[name] for name, mark in digest(tmp_path).items() if name.endswith(".json"))
    assert sum(mark != expected[name] for name, mark in digest(tmp_path).items()) > 1


def test_images_are_what_generator_and_tokenizer_make_of_the_requests(models: Models, alone: Path) -> None:
    images = images_of(make_job(models, alone), NAMES)
    plan = replace(PLAN, images_per_shard=37)
    requests = list(Requests(plan, grid_side=4, embedding_dim=0).shard(0))
    sampler = Sampler(load_generator(models.generator).model, plan.sampling, num_slots=37)
    drawn = {tokens.number: tokens for tokens in sampler.sample(requests)}
    assert [image.number for image in images] == list(range(37))
    decoder = load_tokenizer(models.tokenizer).model
    for image, request in zip(images, requests, strict=True):
        tokens = drawn[image.number]
        assert (image.seed, image.label) == (request.seed, PLAN.classes[image.number % 3])
        assert image.global_codes == tokens.global_codes.tolist()
        assert image.patch_codes == tokens.patch_codes.tolist()
        assert image.patch_positions == tokens.patch_positions.tolist()
        codes, keep = torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, 16, dtype=torch.bool)
        codes[0, image.patch_positions] = torch.tensor(image.patch_codes, dtype=torch.int64)
        keep[0, image.patch_positions] = True
        decoded = decoder.decode(torch.tensor([image.global_codes]), codes, keep)  # (1, 3, S, S)
        pixels = decoded[0].permute(1, 2, 0).numpy()
        # Alone and not in a group, a number may be rounded the other way.
        assert np.abs(decode(image.image) - 255.0 * pixels).max() < 0.51
    assert len({image.num_tokens for image in images}) > 3
    assert all(decode(image.image).std() > 20 for image in images)  # and not grey whatever the tokens are


@pytest.mark.parametrize(("layout", "image_format"), [("files", "webp"), ("webdataset", "png")])
def test_results_count_what_was_made(
    models: Models, alone: Path, tmp_path: Path, layout: str, image_format: str
) -> None:
    job = make_job(models, tmp_path, layout=layout, image_format=image_format)
    worker = start(job)
    assert committed_shards(job.output_url) == set()
    results, began = [], time.monotonic()
    for name in (NAMES[2], NAMES[0]):
        results.append(make(worker, name))
        num_bytes = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert sum(result.bytes_out for result in results) == num_bytes
    assert committed_shards(job.output_url) == {NAMES[0], NAMES[2]}
    took = time.monotonic() - began
    for result, name, num_images in zip(results, (NAMES[2], NAMES[0]), (3, 17), strict=True):
        rows = read_rows(job.output_url, name)
        assert result == ShardResult(
            name,
            num_images=num_images,
            num_tokens=sum(row["num_tokens"] for row in rows),
            bytes_out=result.bytes_out,
            seconds=result.seconds,
        )
        assert len(rows) == num_images and 0 < result.seconds < took
    status = worker.activity.status
    assert status.shards == () and status.lane_busy_s > 0
    assert sum(result.num_images for result in results) == 20
    assert all(result.bytes_out > 0 for result in results)
    # The same images, however they are stored.
    stored = images_of(job, [NAMES[0]])
    for image, other in zip(stored, images_of(make_job(models, alone), [NAMES[0]]), strict=True):
        assert replace(image, image=b"") == replace(other, image=b"")
        assert Image.open(io.BytesIO(image.image)).format == image_format.upper()
        assert np.array_equal(decode(image.image), decode(other.image))


@pytest.mark.parametrize(("keep_globals", "columns"), [(True, (0, 4)), (False, (1, 3))])
def test_what_is_kept_of_an_image_is_in_the_new_one(
    models: Models, tmp_path: Path, keep_globals: bool, columns: tuple[int, int]
) -> None:
    spec, url = models.spec, str(tmp_path / "tokens")
    write_token_dataset(url, [make_rows(6, spec=spec), make_rows(3, spec=spec, first=6)], spec=spec)
    rows = list(TokenDataset(url).rows())
    kept = StartPlan(url, keep_globals, (1, 3), columns)
    job = make_job(models, tmp_path / "out", plan=replace(PLAN, num_images=12, start=kept))
    assert make(start(job), NAMES[0]).error == ""
    images, num_drawn = images_of(job, NAMES[:1]), 0
    assert len(images) == 12
    for image in images:
        row = rows[image.number % 9]
        theirs = dict(zip(row.patch_positions.tolist(), row.patch_codes.tolist(), strict=True))
        ours = dict(zip(image.patch_positions, image.patch_codes, strict=True))
        for position in range(16):
            if position // 4 in (1, 2) and position % 4 in range(*columns):
                assert ours.get(position) == theirs.get(position)
            else:
                num_drawn += position in ours
        assert (image.global_codes == row.global_codes.tolist()) == keep_globals
    assert num_drawn > 5


def test_embeddings_and_budgets_reach_the_generator(tmp_path: Path) -> None:
    config = replace(CLASSES, condition="embedding", embedding_dim=6, num_budgets=4)
    models = save_models(tmp_path, config)
    vectors = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    pq.write_table(pa.table({"embedding": list(vectors)}), tmp_path / "vectors.parquet")
    greedy = SamplingConfig(codes=DrawConfig(temperature=0), positions=DrawConfig(temperature=0))
    found: dict[tuple[str | None, int | None], list[GeneratedImage]] = {}
    for url in (None, str(tmp_path / "vectors.parquet")):
        for num_patches in (None, 0, 16):
            plan = replace(
                PLAN, num_images=4, classes=(), sampling=greedy, embeddings_url=url, num_patches=num_patches
            )
            job = make_job(models, tmp_path / f"out-{len(found)}", plan=plan)
            assert make(start(job), NAMES[0]).error == ""
            found[url, num_patches] = images_of(job, NAMES[:1])
    for (url, _), images in found.items():
        assert [image.label for image in images] == [None] * 4
        # Greedy, an image is a function of its embedding, and these come in turn.
        assert images[0].image == images[2].image and images[1].image == images[3].image
        assert (images[0].image == images[1].image) == (url is None)
    assert len({images[0].image for images in found.values()}) == 6


@pytest.mark.parametrize("which", ["generator", "tokenizer"])
def test_models_that_changed_on_the_way_are_refused(models: Models, tmp_path: Path, which: str) -> None:
    others = save_models(tmp_path / "others", seed=1)
    job = make_job(models, tmp_path / "out")
    found = make_job(others, tmp_path / "out")
    url, mark, wanted = (
        getattr(each, name)
        for each, name in ((others, which), (found, f"{which}_fingerprint"), (job, f"{which}_fingerprint"))
    )
    message = f"{url} has fingerprint {mark[:12]} on this machine, the run was planned with {wanted[:12]}"
    assert mark != wanted
    with pytest.raises(RuntimeError, match=message):
        start(replace(job, **{which: url}))
    assert start(job).job == job


def test_a_worker_that_is_told_to_stop_begins_nothing(models: Models, tmp_path: Path) -> None:
    worker = start(make_job(models, tmp_path))
    assert make(worker, NAMES[2]).was_begun
    worker.stop_taking()
    result = make(worker, NAMES[0])
    assert (result.was_begun, result.error, result.num_images) == (False, "", 0)
    assert committed_shards(str(tmp_path)) == {NAMES[2]}


def test_what_is_under_way_goes_on_to_its_end(models: Models, alone: Path, tmp_path: Path) -> None:
    worker = start(make_job(models, tmp_path, num_slots=1))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(make, worker, NAMES[0])
        while not (shards := worker.activity.status.shards) or not shards[0].num_images:
            time.sleep(0.001)
        worker.stop_taking()
        assert shards[0].is_working and 0 < shards[0].share < 1
        assert result.result().num_images == 17
    name = f"shards/{NAMES[0]}.json"
    assert digest(tmp_path)[name] == digest(alone)[name]


def test_an_error_of_storage_is_a_result_of_its_shard_alone(
    models: Models, alone: Path, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "images" / "000000007.png"
    in_the_way.mkdir(parents=True)
    worker = start(make_job(models, tmp_path))
    with ThreadPoolExecutor(2) as pool:
        failed, done = pool.map(make, (worker, worker), (NAMES[0], NAMES[2]))
    assert "000000007.png" in failed.error and "\n" not in failed.error and failed.was_begun
    assert (failed.num_images, failed.bytes_out) == (0, 0)
    assert done.error == "" and committed_shards(str(tmp_path)) == {NAMES[2]}
    # The worker is as good as before.
    in_the_way.rmdir()
    assert [make(worker, name).error for name in (NAMES[0], NAMES[1])] == ["", ""]
    assert digest(tmp_path) == digest(alone)


def test_a_shard_that_failed_half_way_can_be_tried_again(
    models: Models, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asked for is still being drawn then."""
    worker = start(make_job(models, tmp_path, num_slots=1))

    def fail(*tokens: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(worker._tokenizer, "decode", fail)
        assert make(worker, NAMES[0]).error == "RuntimeError: out of memory"
    assert committed_shards(str(tmp_path)) == set()
    assert [make(worker, name).error for name in NAMES] == ["", "", ""]
    assert digest(tmp_path) == digest(alone)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sampler_that_failed_fails_shards_and_does_not_hang(models: Models, tmp_path: Path) -> None:
    worker = start(make_job(models, tmp_path, plan=replace(PLAN, classes=(0, 99))))
    for name in (NAMES[0], NAMES[1]):
        assert make(worker, name).error == (
            "RuntimeError: the sampler failed: image 1: label 99: expected 0 to 9"
        )
    assert digest(tmp_path) == {}


def test_half_precision_draws_images_too(models: Models, tmp_path: Path) -> None:
    job = make_job(models, tmp_path, precision="bf16", steps="torch", plan=replace(PLAN, num_images=4))
    assert make(start(job), NAMES[0]).error == ""
    assert [len(decode(image.image)) for image in images_of(job, NAMES[:1])] == [TOKENIZER.image_size] * 4


def test_steps_are_computed_as_the_run_was_begun(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "none")
    assert suiting_steps("cpu", "fp32") == "torch"
    job = make_job(models, tmp_path, steps="torch", plan=replace(PLAN, num_images=4))
    assert make(start(job), NAMES[0]).error == ""
    with pytest.raises(
        ValueError, match=r"steps=c: expected float32 on a CPU .* and a C compiler; give steps=torch"
    ):
        start(replace(job, steps="c"))
