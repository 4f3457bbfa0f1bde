from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Findings, Provenance, to_json
from tatok_pipe.evaluation.metrics import psnr
from tatok_pipe.evaluation.pictures import plan_sources, to_images
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.probes import probe_pictures
from tatok_pipe.evaluation.suites.base import Row
from tatok_pipe.evaluation.suites.fine_detail import suite as fine_detail
from tatok_pipe.evaluation.suites.fine_detail.suite import FineDetail
from tatok_pipe.evaluation.suites.fine_detail.summary import MIN_PAIRS, compare
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import PACKAGED
from tests.evaluation.plans import make_plan
from tests.pictures import encode, small_tokenizer, write_shard
from tests.tokenizer.conftest import small_config

SUITE = FineDetail()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_read() -> Iterator[None]:
    """Reading takes seconds; it has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_detail, "can_read", lambda: False)
        yield


@pytest.fixture(scope="module")
def plan() -> EvaluationPlan:
    """The packaged tokenizer, with next to nothing left of an image: 8 of its 256 patches."""
    return make_plan(PACKAGED, filter=Filter("top_k", 8))


@pytest.fixture(scope="module")
def rows(plan: EvaluationPlan) -> list[Row]:
    return SUITE.measure("text-0", Bench(plan, device="cpu"))


def summarise(rows: list[Row], plan: EvaluationPlan) -> tuple[Findings, dict[str, bool]]:
    comparisons = compare(rows, ["text"], ["full"], plan)
    return SUITE.summarise(rows, plan), {each.measure.name: each.is_drop for each in comparisons}


def test_a_destructive_filter_is_found(plan: EvaluationPlan, rows: list[Row]) -> None:
    assert SUITE.parts(plan) == [f"{kind}-{place}" for kind in ("text", "texture") for place in range(3)]
    assert (
        len(rows) == 16
        and {row["set"] for row in rows} == {"text"}
        and {row["tokens"] for row in rows} == {24}
    )
    findings, drops = summarise(rows, plan)
    assert drops["psnr"] and drops["ssim"] and drops["perceptual"]
    assert "text, n = 16, 24 tokens an image: significant drop: PSNR -" in findings.verdicts[0]
    exhibits = findings.galleries[0].exhibits
    assert [pane.label for pane in exhibits[0].panes] == ["original", "filtered", "all patches"]
    worst = min(rows, key=lambda row: row["filtered_psnr"] - row["full_psnr"])
    assert exhibits[0].caption.startswith(worst["key"])


def test_the_same_images_are_no_drop(plan: EvaluationPlan, rows: list[Row]) -> None:
    same = replace(plan, filter=Filter("none", 0))
    found = SUITE.measure("text-0", Bench(same, device="cpu"))
    assert [row["filtered_psnr"] for row in found] == [row["full_psnr"] for row in found]
    assert [row["full_psnr"] for row in found] == [row["full_psnr"] for row in rows]
    findings, drops = summarise(found, same)
    assert not any(drops.values())
    assert "no significant drop, which is no proof of equality" in findings.verdicts[0]
    provenance = Provenance("x", "1", "y", 0, {})
    assert to_json(SUITE.summarise(found, same), provenance) == to_json(findings, provenance)


def test_quality_is_that_of_the_tokenizer(plan: EvaluationPlan, rows: list[Row]) -> None:
    pictures = probe_pictures("text", image_size=128, num_images=2, seed=0)
    images, model = to_images(pictures), load_tokenizer().model
    tokens = model.tokenize(images, plan.filter)
    expected = psnr(model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep), images)
    assert [row["filtered_psnr"] for row in rows[:2]] == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_small_planted_shift_is_found_and_none_is_invented(plan: EvaluationPlan, rows: list[Row]) -> None:
    random = np.random.default_rng(0)
    quality = random.normal(25, 3, 60)
    noise = random.normal(0, 0.5, 60)
    base = rows[0]
    for shift, expected in ((-0.4, True), (0.0, False)):
        planted = [
            base | {"full_psnr": float(value), "filtered_psnr": float(value + shift + jitter)}
            for value, jitter in zip(quality, noise - noise.mean(), strict=True)
        ]
        (found,) = (
            each for each in compare(planted, ["text"], ["full"], plan) if each.measure.name == "psnr"
        )
        assert found.is_drop == expected, found


def test_shuffled_signs_are_no_drop(plan: EvaluationPlan, rows: list[Row]) -> None:
    random = np.random.default_rng(1)
    sizes = np.abs(random.normal(0.4, 0.3, 60))
    drops = {}
    for told in ("lost", "shuffled"):
        drops[told] = 0
        for _ in range(8):
            signs = -np.ones(60) if told == "lost" else random.choice([-1, 1], 60)
            planted = [
                rows[0] | {"full_psnr": 20.0, "filtered_psnr": 20.0 + float(change)}
                for change in signs * sizes
            ]
            drops[told] += compare(planted, ["text"], ["full"], plan)[0].is_drop
    assert drops["lost"] == 8 and drops["shuffled"] <= 1


def test_what_was_read_is_a_measure_of_its_own(plan: EvaluationPlan, rows: list[Row]) -> None:
    unread = SUITE.summarise(rows, plan)
    assert "tesseract was not found" in unread.verdicts[-1]
    assert not any("cer" in name for name in (unread.images or unread.tables[0]).columns)
    values = {"original_cer": 0.01, "filtered_cer": 0.5, "full_cer": 0.25}
    read = [row | values for row in rows[:-1]] + rows[-1:]
    found = SUITE.summarise(read, plan)
    assert found.verdicts[-1] == (
        "Character error rates of Tesseract, mean of 15 pictures; 1 more met no program tesseract: 0.010 in the "
        "originals, 0.500 filtered, 0.250 all patches."
    )
    illegible = SUITE.summarise([row | {"full_cer": 0.9} for row in read[:-1]], plan)
    assert "illegible with all patches too" in illegible.verdicts[-1]
    (test,) = (each for each in compare(read, ["text"], ["full"], plan) if each.measure.name == "cer")
    assert test.is_drop and test.found.difference.value == 0.25 and test.found.effect.value == -1
    expected: Any = stats.wilcoxon([0.25] * 15, alternative="greater")
    assert test.found.p_value == pytest.approx(expected.pvalue)
    assert {plot.name for plot in found.plots} - {plot.name for plot in unread.plots} == {
        "difference_cer_full"
    }


def test_sets_that_are_too_small_are_not_tested(plan: EvaluationPlan, rows: list[Row]) -> None:
    few = [row | {"set": "text of the data"} for row in rows[: MIN_PAIRS - 1]]
    found = SUITE.summarise([*rows, *few], plan)
    assert [row[0] for row in found.tables[0].rows] == ["text"] * 3
    assert (
        found.verdicts[1] == "text of the data, n = 9, 24 tokens an image: too few to test, 10 are expected."
    )
    assert SUITE.summarise(few, plan).tables[0].rows == []


def test_a_baseline_is_a_second_reference(tmp_path: Path) -> None:
    torch.manual_seed(1)
    baseline = TaTok(small_config(num_globals=0)).eval()
    saved = save_tokenizer(str(tmp_path / "baseline"), baseline, ladders={}, training={})
    plan = make_plan(small_tokenizer(tmp_path / "tokenizer"), filter=Filter("top_k", 3))
    plan = replace(plan, baseline=str(tmp_path / "baseline"), baseline_fingerprint=saved)
    rows = SUITE.measure("texture-1", Bench(plan, device="cpu"))
    images = to_images(probe_pictures("texture", image_size=32, num_images=32, seed=0)[16:])
    codes = baseline.encode(images).patches.codes
    expected = psnr(baseline.decode(codes[:, :0], codes, torch.ones_like(codes) > 0), images)
    assert [row["baseline_psnr"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-3)
    assert (rows[0]["tokens"], rows[0]["full_tokens"], rows[0]["baseline_tokens"]) == (5, 18, 16)
    findings = SUITE.summarise(rows, plan)
    assert [row[2] for row in findings.tables[0].rows] == ["all patches", "patch tokens alone"] * 3
    assert [plot.name for plot in findings.plots[-2:]] == ["effects_full", "effects_baseline"]
    assert [pane.label for pane in findings.galleries[0].exhibits[0].panes][-1] == "patch tokens alone"


def test_images_of_the_data_take_part_by_their_kind(plan: EvaluationPlan, tmp_path: Path) -> None:
    members = []
    for key, kind in (("a", "photo"), ("b", "texture"), ("c", "text"), ("d", "")):
        members += [(f"{key}.png", encode(Image.effect_noise((64, 64), 50).convert("RGB")))]
        members += [(f"{key}.json", f'{{"kind": "{kind}"}}'.encode())]
    write_shard(tmp_path / "a.tar", members)
    with_data = replace(plan, sources=tuple(plan_sources(str(tmp_path), max_images=4)))
    assert SUITE.parts(with_data)[-1] == "data-000000"
    found = SUITE.measure("data-000000", Bench(with_data, device="cpu"))
    assert [(row["key"], row["set"]) for row in found] == [
        ("b", "texture of the data"),
        ("c", "text of the data"),
    ]
