"""A whole study on Ray, killed in the middle and run again: the same page as one that nothing happened to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.commands.study.page import PAGE, SECONDS_BEGIN, SECONDS_END
from tatok_pipe.commands.study.results import RESULT
from tests.study.studies import write_images, write_tokenizer

_WAIT_S = 900.0


def command(folder: Path) -> list[str]:
    """In words that are the same for every output, as it is the one of its working folder."""
    fixed, adaptive = (write_tokenizer(folder / f"k{count}", num_globals=count) for count in (0, 3))
    half = f"half checkpoint={adaptive} dtf.rule=threshold dtf.target_tokens=11"
    return [
        sys.executable, "-m", "tatok_pipe.study", *write_images(folder, num_train=48, num_test=20),
        f"arms=['fixed checkpoint={fixed} dtf.rule=none', '{half}']", "generator.steps=3",
        "generator.images_per_step=16", "generator.timed_steps=2", "measures.num_drawn=20", "measures.slots=8",
        "measures.classifier_epochs=1", "cpus=1", "output.url=study",
        "generator.options=[model.width=32, model.depth=1, model.heads=2]",
    ]  # fmt: skip


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        told, _ = process.communicate(timeout=_WAIT_S)
    finally:
        kill(process)
    assert process.returncode == 0, told[-3000:]
    return told


def kill(process: subprocess.Popen[str]) -> None:
    """With all that it has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_at(process: subprocess.Popen[str], study: Path, kind: str) -> None:
    """As soon as a part of this kind is whole."""
    until = time.monotonic() + _WAIT_S
    try:
        while not list(study.glob(f"parts/{kind}-*/{RESULT}")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
    finally:
        kill(process)


def without_seconds(page: str) -> str:
    found = re.sub(f"{SECONDS_BEGIN}.*?{SECONDS_END}", "", page, flags=re.DOTALL)
    assert len(found) < len(page)
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_a_study_that_is_killed_and_run_again_gives_the_same_page(tmp_path: Path) -> None:
    words = command(tmp_path)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(words, killed)
    kill_at(process, killed / "study", "generator")
    finish(start(words, killed))
    # Times of steps are measured once, and decide how long a training of equal seconds is.
    for part in (killed / "study" / "parts").glob("step_time-*"):
        shutil.copytree(part, whole / "study" / "parts" / part.name)
    finish(start(words, whole))
    pages = [(folder / "study" / PAGE).read_text() for folder in (killed, whole)]
    assert without_seconds(pages[0]) == without_seconds(pages[1])
    results = [(folder / "study" / "results.json").read_bytes() for folder in (killed, whole)]
    assert results[0] == results[1]
    check_figures(whole / "study")
    told = finish(start(words, whole))
    assert "28 parts, 28 of them done before" in told and (whole / "study" / PAGE).read_text() == pages[1]


def check_figures(study: Path) -> None:
    """Against what is plain from the files of the parts."""
    by_kind: dict[str, list[dict]] = {}
    for path in study.glob(f"parts/*/{RESULT}"):
        content = json.loads(path.read_text())
        by_kind.setdefault(content["kind"], []).append(content)
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "classifier": 1, "real": 1, "tokenizer": 2, "scored": 4, "tokens": 2, "test_tokens": 2, "step_time": 2,
        "generator": 3, "draw": 3, "likeness": 3, "reconstruction": 2, "nats": 3,
    }  # fmt: skip
    lengths = {part["label"]: part["figures"]["real_lengths"] for part in by_kind["reconstruction"]}
    assert set(lengths["fixed"]) == {16} and 4 <= np.mean(lengths["half"]) < 19
    drawn = {part["label"]: part["figures"]["lengths"] for part in by_kind["likeness"]}
    assert drawn["fixed, seed 0, equal steps"] == [16] * 20  # its places are given
    assert len(set(drawn["half, seed 0, equal steps"])) > 1
    steps = {part["label"]: part["figures"]["steps"] for part in by_kind["generator"]}
    step_s = {part["label"]: part["seconds"]["step"] for part in by_kind["step_time"]}
    assert steps["fixed, seed 0, equal steps"] == steps["half, seed 0, equal steps"] == 3
    assert steps["half, seed 0, equal seconds"] == max(1, round(3 * step_s["fixed"] / step_s["half"]))
    for part in by_kind["nats"]:  # hardly trained: about the logarithm of the number of codes for each patch
        figures = part["figures"]
        total = figures["global_nats"] + figures["position_nats"] + figures["patch_nats"]
        assert figures["nats"]["value"] == pytest.approx(total, rel=1e-6)
        assert figures["num_images"] == 20
    (fixed,) = (part["figures"] for part in by_kind["nats"] if part["label"].startswith("fixed"))
    assert fixed["patch_nats"] == pytest.approx(16 * np.log(64), rel=0.2) and fixed["global_nats"] == 0
    timings = json.loads((study / "timings.json").read_text())
    assert len(timings) == 28
