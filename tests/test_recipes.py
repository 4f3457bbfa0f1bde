"""The table of tokenizer recipes, read from what trainings wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import load_config
from tests.benchmarks import recipes

QUICK = Path(__file__).parents[1] / "configs" / "tokenizer" / "quick.yaml"


def test_variants_are_options_that_there_are() -> None:
    training = {"decoder_steps": 7, "decoder_learning_rate": 1e-3}
    found = {
        name: load_config(
            TrainTokenizerConfig, [str(QUICK), "output.url=x", "input.shards=x", *argv], prog="x", description=""
        )
        for name, argv in recipes.variants(training).items()
    }  # fmt: skip
    assert found["patches alone"].model.num_globals == 0
    assert (
        found["random start"].training.stages[0] == "joint"
        and found["random start"].training.joint_steps == 7
    )
    joint = [found[name] for name in found if name.startswith("joint training")]
    assert [each.model.encoder.depth for each in joint] == [0, 2]
    assert [(each.training.start, each.training.joint_steps) for each in joint] == [("closed_form", 14)] * 2
    mix = found["trained with all patches kept"].training.decoder_mix
    assert (mix.gain, mix.synthesis, mix.random, mix.globals_only) == (0, 0, 0, 0)
    assert found["recipe"].training.decoder_mix.gain > 0


def test_a_row_is_the_mean_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, everything: float) -> None:
        rows = [{"kept_share": 0.5, "psnr": {recipes.SCORE: everything - 1}}]
        card: dict[str, Any] = {"psnr_none": everything, "filtered": rows, "psnr_globals_only": 17.0}
        file = tmp_path / name / recipes.FILE
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"training": {"held_out": card}}))

    for name, everything in (
        ("recipe-0", 24.0),
        ("recipe-1", 24.2),
        ("patches-alone-0", 23.5),
        ("patches-alone-1", 23.5),
    ):
        write(name, everything)
    monkeypatch.setattr(sys, "executable", "/nothing/is/trained")
    argv = [str(QUICK), "--shards", "a", "--held-out", "b", "--seeds", "0", "1", "--output", str(tmp_path)]
    assert recipes.main([*argv, "--variants", "recipe", "patches alone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "recipe",
        "24.10 ± 0.14",
        "23.10 ± 0.14",
        "17.00 ± 0.00",
    ]
    assert lines[3].startswith("| patches alone | 23.50 ± 0.00 |")
