"""Generating as users start it: actors that die, runs that are interrupted, and every image there once and the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tatok_pipe
from tatok_pipe import storage
from tatok_pipe.commands.generate import run as generate_run
from tatok_pipe.errors import RefusedError, has_outside_cause
from tatok_pipe.generate import main
from tests.entries import assert_told, error_lines
from tests.generation.models import Models, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return save_models(tmp_path_factory.mktemp("models"))


def arguments(models: Models, output: str, *more: str) -> list[str]:
    return [f"checkpoint={models.generator}", f"tokenizer={models.tokenizer}", f"output.url={output}", *more]


def start(given: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tatok_pipe.generate", *given], text=True, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(given: list[str]) -> tuple[int, str]:
    process = start(given)
    told, _ = process.communicate(timeout=240)
    return process.returncode, told


def files(url: str) -> dict[str, bytes]:
    """What the images of a run are: all but what tells of the run itself."""
    found = {}
    for folder in ("images", "shards"):
        for name in storage.list_files(storage.join(url, folder)):
            found[f"{folder}/{name}"] = storage.read_bytes(storage.join(url, folder, name))
    return found


@pytest.mark.ray
def test_images_with_everything_that_is_made_of_them(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = arguments(
        models, str(out), "num_images=40", "output.images_per_shard=16", "output.npz=true", "classes=7,2-3",
        "output.contact_sheet=9", "output.gallery=5", "seed=3",
    )  # fmt: skip
    code, told = run(given)
    assert code == 0, told
    assert "40 images in 3 shards, 0 done before" in told and "tokens an image of 3 + 16" in told
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"{n:09d}.png" for n in range(40)]
    rows = [
        row
        for name in ("000000", "000001", "000002")
        for row in json.loads((out / "shards" / f"{name}.json").read_text())
    ]
    assert [row["number"] for row in rows] == list(range(40))
    assert [row["label"] for row in rows[:4]] == [7, 2, 3, 7]
    assert (out / "gallery.html").read_text().count("<figure") == 5
    assert Image.open(out / "contact_sheet.png").size == (3 * 36 + 4, 3 * 36 + 4)
    summary = json.loads((out / "_summary.json").read_text())
    assert summary["num_images"] == 40
    assert summary["mean_tokens"] == pytest.approx(np.mean([row["num_tokens"] for row in rows]), abs=1e-3)

    # The same as through Python, and as the pixels in the array.
    tokens = tatok_pipe.load_generator(models.generator).sample(40, classes=[7, 2, 3], seed=3)
    assert [image.patch_codes.tolist() for image in tokens] == [row["patch_codes"] for row in rows]
    pictures = tatok_pipe.load_tokenizer(models.tokenizer).decode(tokens).movedim(1, -1).numpy()
    array = np.load(out / "samples.npz")["arr_0"]
    assert np.abs(array / 255 - pictures).max() < 0.51 / 255
    assert np.array_equal(array[17], np.asarray(Image.open(out / "images/000000017.png")))

    before = files(str(out))
    code, told = run(given)
    assert code == 0 and "3 done before" in told and "actors" not in told
    assert files(str(out)) == before
    with pytest.raises(RefusedError, match=r"plan.seed: 3, not 4\); give another output.url"):
        main([*given, "seed=4"])


def find_actors(mark: str) -> list[int]:
    """Processes of the actors of the run with this mark in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = f"TATOK_TEST_RUN={mark}".encode() in (process / "environ").read_bytes()
            if is_ours and (process / "cmdline").read_bytes().startswith(b"ray::ShardActor"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_thousand_images_of_two_actors_of_which_one_is_killed(
    models: Models, s3_url: str, tmp_path: Path
) -> None:
    common = ("num_images=1000", "output.images_per_shard=25", "device.slots=4", "progress.every_s=1")
    undisturbed = str(tmp_path / "undisturbed")
    code, told = run(arguments(models, undisturbed, *common, "device.slots=16"))
    assert code == 0, told

    mark = uuid.uuid4().hex
    disturbed = f"{s3_url}/images"
    two = ("actors.min=2", "actors.max=2", "actors.cpus=1")
    process = start(arguments(models, disturbed, *common, *two), TATOK_TEST_RUN=mark)
    try:
        deadline = time.monotonic() + 120
        while len(storage.list_files(storage.join(disturbed, "shards"))) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        actors = find_actors(mark)
        assert len(actors) == 2
        os.kill(actors[0], signal.SIGKILL)
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, told
    assert "lost with" in told and "tried again" in told
    found, expected = files(disturbed), files(undisturbed)
    assert len([name for name in found if name.endswith(".png")]) == 1000
    assert found == expected


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_an_interrupted_run_is_completed_by_the_same_command(
    models: Models, tmp_path: Path, layout: str
) -> None:
    common = ("num_images=400", "output.images_per_shard=20", "device.slots=2", f"output.layout={layout}")
    out = str(tmp_path / "out")
    process = start(arguments(models, out, *common))
    deadline = time.monotonic() + 120
    try:
        while len(list(Path(out).glob("shards/*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 4, told
    assert "the same command does the rest" in told
    num_done = len(list(Path(out).glob("shards/*.json")))
    assert 3 <= num_done < 20 and not (Path(out) / "_summary.json").exists()
    code, told = run(arguments(models, out, *common))
    assert code == 0 and f"20 shards, {num_done} done before" in told
    whole = str(tmp_path / "whole")
    assert run(arguments(models, whole, *common))[0] == 0
    assert files(out) == files(whole)


@pytest.mark.ray
@pytest.mark.slow
def test_a_shard_that_cannot_be_written_is_named_and_tolerated_on_demand(
    models: Models, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "images/000000017.png/in the way").mkdir(parents=True)
    given = arguments(models, str(out), "num_images=30", "output.images_per_shard=10")
    code, told = run(given)
    assert code == 1, told
    assert "failed shard 000001" in told and "000000017.png" in told and "1 of 3 shards are missing" in told
    assert "Traceback" not in told and not (out / "_summary.json").exists()
    code, told = run([*given, "failures.max_failed_shards=1"])
    assert code == 0, told
    assert json.loads((out / "_summary.json").read_text())["num_images"] == 20
    (out / "images/000000017.png/in the way").rmdir()
    (out / "images/000000017.png").rmdir()
    code, told = run(given)
    assert code == 0 and "3 shards, 2 done before" in told
    assert json.loads((out / "_summary.json").read_text())["num_images"] == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["num_images=0"], "num_images=0: expected at least 1"),
        (["classes=10"], "classes=10: expected 0 to 9"),
        (["classes=cats"], "'cats' is no class"),
        (["target_tokens=10"], "target_tokens=10: the generator knows no budgets"),
        (["sampling.codes.top_p=0"], "top_p=0.0: expected more than 0"),
        (["checkpoint=/nowhere"], "checkpoint=/nowhere: expected a folder with generator.json"),
        (["tokenizer=/nowhere"], "^tokenizer=/nowhere: expected a folder with tokenizer.json"),
        (
            ["tokenizer=packaged"],
            "tokenizer=packaged: has fingerprint .*, and checkpoint=.* was trained on tokens of",
        ),
        (["start.url=/nowhere"], "/nowhere: no _dataset.json there"),
        (["output.layout=zip"], "expected one of files, webdataset"),
    ],
)
def test_a_mistake_is_told(models: Models, tmp_path: Path, changes: list[str], message: str) -> None:
    code = 3 if "fingerprint" in message else 2
    assert_told(main, arguments(models, str(tmp_path / "out"), *changes), message, code=code)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_before_ray_starts(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_run, "start_ray", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(OSError, match="/proc/nothing") as caught:
        main(arguments(models, "/proc/nothing/out"))
    assert has_outside_cause(caught.value)  # so that it ends as one line


def test_a_mistake_is_one_line(models: Models, tmp_path: Path) -> None:
    code, told = run(arguments(models, str(tmp_path / "out"), "classes=3,12"))
    assert code == 2 and len(error_lines(told)) == 1
    assert "classes=3,12: expected 0 to 9, the generator's classes" in told
