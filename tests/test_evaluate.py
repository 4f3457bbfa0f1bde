"""Evaluating as users start it: killed half-way, run again, and what is told of mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tatok_pipe.commands.evaluate.options import EvaluateConfig
from tatok_pipe.commands.evaluate.run import make_plan
from tatok_pipe.config.load import load_config
from tatok_pipe.evaluate import main
from tatok_pipe.evaluation.suites import SUITES
from tatok_pipe.evaluation.work import write_part
from tests.entries import assert_told
from tests.jobs import running, wait_for
from tests.pictures import crop_members, small_tokenizer, write_shard

NUM_SHARDS = 8
NUM_IMAGES = 3 * NUM_SHARDS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and image shards."""
    folder = tmp_path_factory.mktemp("world")
    small_tokenizer(folder / "tokenizer")
    for number in range(NUM_SHARDS):
        write_shard(folder / f"{number}.tar", crop_members(3, first=3 * number))
    return folder


def arguments(world: Path, *more: str) -> list[str]:
    return [
        "suite=reconstruction", f"tokenizer={world / 'tokenizer'}", f"data={world}/*.tar", f"max_images={NUM_IMAGES}",
        "output.url=out", "actors.max=1", "actors.cpus=1", "progress.every_s=1", *more,
    ]  # fmt: skip


def run(folder: Path, given: list[str]) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "tatok_pipe.evaluate", *given], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True, capture_output=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_killed_half_way_it_goes_on_and_finds_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", arguments(world))
    assert whole.returncode == 0, whole.stderr
    assert f"{NUM_IMAGES} images" in whole.stdout and "out/reconstruction/report.html" in whole.stdout
    assert "1 of 1 suites" in whole.stderr and "Traceback" not in whole.stderr

    (tmp_path / "killed").mkdir()
    monkeypatch.chdir(tmp_path / "killed")
    command = [sys.executable, "-m", "tatok_pipe.evaluate", *arguments(world)]
    log = tmp_path / "log"
    with running(command, log) as process:
        wait_for("1 actors", log, process)
        while not list(Path("out").glob("reconstruction/parts-*/*.parquet")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    parts = list((tmp_path / "killed/out/reconstruction").glob("parts-*/*.parquet"))
    assert 1 <= len(parts) < NUM_SHARDS and not list((tmp_path / "killed/out/reconstruction").glob("*.json"))
    left = {path.name: path.stat().st_mtime_ns for path in parts}
    again = run(tmp_path / "killed", arguments(world))
    assert again.returncode == 0, again.stderr
    # An actor outlives its driver by moments, and may still commit what it was at.
    (done,) = re.findall(r"8 parts, (\d+) done before", again.stderr)
    assert len(parts) <= int(done) < NUM_SHARDS
    assert {path.name: path.stat().st_mtime_ns for path in parts} == left  # not measured again
    results = [
        (tmp_path / name / "out/reconstruction/results.json").read_bytes() for name in ("whole", "killed")
    ]
    assert results[0] == results[1]
    content = json.loads(results[0])
    assert (
        content["figures"]["tokens"]["n"] == NUM_IMAGES
        and content["settings"]["sources"][0]["num_images"] == 3
    )
    assert content["command"].startswith("python -m tatok_pipe.evaluate suite=reconstruction tokenizer=")


@pytest.mark.ray
@pytest.mark.slow
def test_a_shard_that_cannot_be_read_fails_alone_and_is_named(world: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", crop_members(2, first=2 * number))
    broken = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(broken[: len(broken) // 2])
    given = [each for each in arguments(world) if not each.startswith("data=")] + [f"data={tmp_path}/*.tar"]
    found = run(tmp_path, given)
    assert found.returncode == 1
    assert "failed part reconstruction/000001:" in found.stderr and "1.tar" in found.stderr
    assert "Traceback" not in found.stderr and "0 of 1 suites" in found.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["suite=reconstuction"], "suite=reconstuction: reconstuction; expected reconstruction, "),
        (["suite="], "suite=: empty; expected"),
        (["data="], "data=: empty; expected a URL or path or null"),
        (["tokens="], "tokens=: empty; expected a URL or path or null"),
        (["suite=generation"], "suite=generation: give generator="),
        (["suite=corpus"], "suite=corpus: give tokens="),
        (["tokenizer=nowhere"], "^tokenizer=nowhere: expected a folder"),
        (["baseline=nowhere"], "^baseline=nowhere: expected a folder"),
        (["generator=nowhere"], "^generator=nowhere: expected a folder"),
        (["data=nowhere/*.tar"], "^data: nowhere"),
        (["max_images=1"], "max_images=1: expected at least 2"),
        (["confidence=1.5"], "^confidence=1.5: expected more than 0 and less than 1"),
        (["compare=nowhere.json"], "compare=nowhere.json: no such file"),
        (["dtf.target_tokens=5000"], "dtf.target_tokens=5000"),
        (["features.kind=vgg"], "features.kind=.*vgg.*: expected one of auto, inception"),
        (["baseline=packaged"], "baseline=packaged: for images of 128 px; expected 32 px"),
    ],
)
def test_mistakes_are_told_in_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_told(main, [*arguments(world), *given], message)
    assert not list(tmp_path.iterdir())


def test_every_suite_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told for name in SUITES)


def test_without_a_single_image_there_is_nothing_to_find(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(world)
    plan = make_plan(load_config(EvaluateConfig, given, prog="x", description="x"))
    for number in range(NUM_SHARDS):
        write_part("out", "reconstruction", f"{number:06d}", plan, [])
    assert main(given) == 1
    assert "failed: suite reconstruction: data=" in caplog.text and "none of its images" in caplog.text
