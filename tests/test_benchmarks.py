"""What the benchmarks say of two sides, and the guard that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.against import decoding
from tests.benchmarks.against.sides import OURS, Comparison
from tests.benchmarks.encode_against import IMAGE_SIZE, ROOT, compare_encoding
from tests.benchmarks.measure import MAX_FALL, Figure, Results, find_falls, from_pairs, timed
from tests.benchmarks.pictures import decode_with_pillow, make_pictures

FOLDER = Path(__file__).parent / "benchmarks"


def test_a_figure_is_the_median_of_pairs() -> None:
    figure = from_pairs("a/b", "a / b", [(10, 5), (30, 10), (8, 8)], unit="images/s", target=1.5)
    assert (figure.ours, figure.other, figure.ratio) == (10, 8, 2)
    assert (figure.ratio_min, figure.ratio_max, figure.meets_target) == (1, 3, True)
    assert not replace(figure, target=2.5).meets_target


def test_sides_are_measured_in_turn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calls: list[str] = []

    def side(name: str, speed: float) -> float:
        calls.append(name)
        return speed

    results = Results()
    results.compare(
        "a/b", "this / that", lambda: side("a", 3.0), lambda: side("b", 2.0), unit="MB/s", pairs=2
    )
    assert calls == ["a", "b", "a", "b"]
    results.limit("m", "memory", 1.5, 3.0, unit="GB")
    assert "this / that, MB/s" in capsys.readouterr().out
    results.write(tmp_path / "out.json")
    assert [row["ratio"] for row in json.loads((tmp_path / "out.json").read_text())] == [1.5, 2.0]
    assert timed(10, lambda: None)() > 0


def test_the_guard_finds_what_fell_and_what_is_missing() -> None:
    figure = Figure("a", "a", "x", 1, 1, ratio=1.0, ratio_min=1, ratio_max=1)
    figures = [figure, replace(figure, key="b", ratio=2.0 * (1 - MAX_FALL) - 0.01)]
    assert find_falls(figures, {"a": 1.0}) == []
    assert find_falls(figures, {"a": 1 / (1 - MAX_FALL) - 0.01}) == []
    (fall,) = find_falls(figures, {"a": 1.0, "b": 2.0})
    assert fall.startswith("b: 1.69, 16% below")
    (missing,) = find_falls(figures, {"c": 1.0})
    assert missing == "c: not measured; the baseline has 1.00"


def test_the_baseline_is_of_figures_that_are_measured() -> None:
    baseline = json.loads((FOLDER / "baseline.json").read_text())
    sources = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    for key, ratio in baseline.items():
        assert ratio > 0
        part, _, rest = key.partition("/")
        assert f'"{part}/' in sources, key


def test_a_scaled_decoding_is_close_to_a_whole_one() -> None:
    picture = make_pictures()[0]
    whole, scaled = (decode_with_pillow(picture, 128, draft=draft) for draft in (False, True))
    assert whole.shape == scaled.shape == (128, 128, 3)
    assert abs(whole.astype(int) - scaled.astype(int)).mean() < 3


def test_the_model_that_does_nothing_keeps_everything() -> None:
    code = """
import torch
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig
tokenizer = load_tokenizer()
found = tokenizer.model.tokenize(torch.rand(2, 3, 128, 128), tokenizer.filter(DTFConfig()))
print(found.global_codes.shape, found.patch_codes.shape, int(found.patch_codes.sum()), bool(found.keep.all()))
"""
    env = os.environ | {"PYTHONPATH": str(FOLDER / "null_model")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([2, 16]) torch.Size([2, 256]) 0 True", done.stderr


@pytest.mark.slow
def test_a_checkout_beside_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "_LEAST_IMAGES", 1)
    results = Results()
    decoding.decoding(Comparison(results, OURS, OURS, "itself", rounds=1, shards=[]))
    keys = [figure.key for figure in results.figures]
    assert {"decode/JPEG/256/revision", "decode/JPEG/128/limit", "decode/WEBP/256/revision"} <= {*keys}
    assert all(figure.ours > 0 and figure.other > 0 for figure in results.figures)
    assert "10 of 10 pictures are the same, 0.00e+00 of the values differ" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(
        ["git", "cat-file", "-e", "ea0b676"], cwd=ROOT, capture_output=True, check=False
    ).returncode
    != 0,
    reason="needs the history of the repository",
)
def test_a_revision_is_measured_with_its_own_code_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    results = Results()
    quality = compare_encoding(results, "ea0b676", pixels, rounds=1)
    assert [figure.key for figure in results.figures] == [
        "against/encode_encoder",
        "against/encode_entropy",
        "against/encode_both",
    ]
    assert all(figure.ours > 0 and figure.other > 0 for figure in results.figures)
    assert quality["other"]["fingerprint"] == "1adde08dd6e8" != quality["ours"]["fingerprint"]
    assert "psnr_128" in capsys.readouterr().out
