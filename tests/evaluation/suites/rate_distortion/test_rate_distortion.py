from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Provenance, to_json
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.pictures import plan_sources, read_pictures
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.probes import PROBES
from tatok_pipe.evaluation.suites import base
from tatok_pipe.evaluation.suites.base import Row, column
from tatok_pipe.evaluation.suites.rate_distortion.rate_curves import CURVES, SWEEPS, keep_counts
from tatok_pipe.evaluation.suites.rate_distortion.suite import NUM_PROBE_IMAGES, RateDistortion
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import PACKAGED, DTFConfig
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES
from tatok_pipe.tokenizer.scores.table import SCORES
from tests.pictures import write_shard
from tests.tokenizer.conftest import small_config

NUM_IMAGES = 6
SUITE = RateDistortion()
COUNTS = keep_counts(256)  # of the packaged tokenizer's patches
# The packaged tokenizer may be older than a score or rule.
CALIBRATED = [
    (rule, score) for rule, score in SWEEPS if rule in load_tokenizer(PACKAGED).ladders.get(score, {})
]


def plan_of(tokenizer: str, folder: Path, num_images: int = NUM_IMAGES) -> EvaluationPlan:
    loaded = load_tokenizer(tokenizer)
    crops = sorted(held_out_crops(crops_per_source=2), key=lambda crop: crop.key[::-1])[:num_images]
    shard = write_shard(folder / "a.tar", [(f"{crop.key}.jpg", crop.image) for crop in crops])
    return EvaluationPlan(
        tokenizer=tokenizer,
        tokenizer_fingerprint=loaded.fingerprint,
        image_size=loaded.model.config.image_size,
        filter=loaded.filter(DTFConfig()),
        sources=tuple(plan_sources(shard, max_images=num_images)),
        data=shard,
        features=FeaturesConfig(),
        seed=3,
        confidence=0.95,
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> EvaluationPlan:
    return plan_of(PACKAGED, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def measured(plan: EvaluationPlan) -> list[Row]:
    """As they come out of their file."""
    rows = SUITE.measure("000000", Bench(plan, device="cpu"))
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return pq.read_table(file).to_pylist()


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> EvaluationPlan:
    """With a tokenizer that was never trained, and its threshold in the middle."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    model = TaTok(small_config()).eval()
    ladder = [[float(kept), 1.0 - kept / 16] for kept in (0, 16)]
    rules = {"threshold": ladder, "budget": [[0.0, 60.0], [16.0, 0.0]]}
    ladders = {score: rules for score in SCORES}
    save_tokenizer(str(folder / "tokenizer"), model, ladders=ladders, training={})
    return plan_of(str(folder / "tokenizer"), folder, num_images=5)


def copies(rows: list[Row], **columns: Any) -> list[Row]:
    return [row | columns for row in rows]


def test_parts_are_shards_and_probes(plan: EvaluationPlan) -> None:
    assert SUITE.parts(plan) == ["000000", *(f"probe-{kind}" for kind in PROBES)]


def test_a_point_of_a_curve_beside_a_plain_loop(measured: list[Row], plan: EvaluationPlan) -> None:
    """One image at a time, patches by plain sorting, PSNR by scikit-image."""
    model, count = load_tokenizer(PACKAGED).model, COUNTS[1]
    for picture, row in list(zip(read_pictures(plan.sources[0], image_size=128), measured, strict=True))[:3]:
        image = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            encoded = model.encode(image)
            costs = {
                "gain": encoded.gain[0].tolist(),
                "drop_cost": model.log_drop_cost(encoded)[0].tolist(),
                "variance": [patch.var().item() for patch in model.patchify(image)[0]],
                "prefix": [-float(place) for place in range(256)],
            }
            for name, cost in costs.items():
                keep = torch.zeros(1, 256, dtype=torch.bool)
                keep[0, sorted(range(256), key=lambda place: -cost[place])[:count]] = True
                decoded = model.decode(encoded.globals.codes, encoded.patches.codes, keep)
                wanted = peak_signal_noise_ratio(
                    image.double().numpy(), decoded.double().numpy(), data_range=1
                )
                assert row[f"psnr top_k {name} {count}"] == pytest.approx(wanted, abs=1e-3)
        assert row["key"] == picture.key


def test_measuring_errors_beats_chance_and_all_beats_nothing(measured: list[Row]) -> None:
    for count in COUNTS:
        mean = {name: column(measured, f"psnr top_k {name} {count}").mean() for name in CURVES}
        assert mean["synthesis"] > mean["random"] + 0.2
        assert mean["one_shot"] > mean["random"]
    assert (column(measured, "psnr none") > column(measured, "psnr globals") + 1).all()
    assert column(measured, "perceptual none").mean() < column(measured, "perceptual globals").mean()


def test_sweeps_keep_more_step_by_step(measured: list[Row]) -> None:
    for rule, score in CALIBRATED:
        kept = np.stack([column(measured, f"kept {rule} {score} {count}") for count in COUNTS])
        value = np.stack([column(measured, f"value {rule} {score} {count}") for count in COUNTS])
        assert (np.diff(kept, axis=0) >= 0).all() and (np.diff(kept.mean(axis=1)) > 0).all()
        sign = 1 if CALIBRATED_RULES[rule].keeps_more_when_higher else -1
        assert (sign * np.diff(value, axis=0) > 0).all()
        assert kept.min() >= 1 and kept.max() <= 256
        counts, values = zip(*sorted(load_tokenizer(PACKAGED).ladders[score][rule]), strict=True)
        np.testing.assert_allclose(value[:, 0], np.interp(COUNTS, counts, values))


def test_bits_are_those_of_codes_and_positions(measured: list[Row]) -> None:
    quantizers = load_tokenizer(PACKAGED).model
    size = quantizers.patch_quantizer.vocab_size, quantizers.global_quantizer.vocab_size

    def bits(kept: int) -> float:
        return 16 * math.log2(size[1]) + kept * math.log2(size[0]) + math.log2(math.comb(256, kept))

    assert measured[0]["bits top_k 128"] == pytest.approx(bits(128))
    for row in measured:
        kept = row["kept threshold gain 56"]
        assert row["bits threshold gain 56"] == pytest.approx(bits(kept))


def test_the_filter_is_the_one_of_tokenize(measured: list[Row], plan: EvaluationPlan) -> None:
    pictures = read_pictures(plan.sources[0], image_size=128)
    images = torch.stack([torch.from_numpy(picture.pixels.copy()) for picture in pictures])
    tokens = load_tokenizer(PACKAGED).model.tokenize(images.permute(0, 3, 1, 2) / 255, plan.filter)
    assert column(measured, "kept filter").tolist() == tokens.keep.sum(1).tolist()
    np.testing.assert_allclose(column(measured, "costs"), tokens.cost.numpy(), rtol=1e-3, atol=1e-6)


def test_findings_are_the_same_twice_and_whole(measured: list[Row], plan: EvaluationPlan) -> None:
    rows = measured + copies(measured, is_probe=True, kind="text")

    def found() -> str:
        return to_json(SUITE.summarise(rows, plan), Provenance("", "", "", 0, {}))

    assert found() == found()
    content = json.loads(found())
    numbers = [row["value"] for row in content["figures"].values()]
    assert None not in numbers and len(numbers) > 60
    assert {
        "psnr_by_tokens",
        "perceptual_by_tokens",
        "psnr_by_rule",
        "kept_by_budget",
        "tokens_by_kind",
    } <= set(content["plots"])
    assert len(content["tables"]["psnr"]["rows"]) == (len(CURVES) + 1) * len(COUNTS)  # and the textbook
    assert len(content["tables"]["rules"]["rows"]) == len(CALIBRATED) * len(COUNTS)
    assert f"n = {NUM_IMAGES} images" in content["verdicts"][0]


def test_the_textbook_stands_beside_the_curves(measured: list[Row], plan: EvaluationPlan) -> None:
    content = json.loads(
        to_json(
            SUITE.summarise(measured + copies(measured, is_probe=True, kind="text"), plan),
            Provenance("", "", "", 0, {}),
        )
    )
    rows = [row for row in content["tables"]["psnr"]["rows"] if "textbook" in str(row[3])]
    bits = [measured[0][f"bits top_k {count}"] for count in COUNTS]
    assert [row[2] for row in rows] == pytest.approx(bits, rel=1e-6)
    assert (np.diff([row[4] for row in rows]) > 0).all()  # more bits, less error
    verdict = next(verdict for verdict in content["verdicts"] if "textbook" in verdict)
    assert f"{rows[COUNTS.index(128)][4]:.2f} dB" in verdict


def test_planted_effects_are_found_and_no_others(measured: list[Row], plan: EvaluationPlan) -> None:
    """entropy 5 dB over random everywhere, every threshold a fixed count, but that of synthesis 1 dB better."""
    rows = copies(measured)
    for row in rows:
        for count in COUNTS:
            row[f"psnr top_k entropy {count}"] = row[f"psnr top_k random {count}"] + 5
            for score in SCORES:
                row[f"kept threshold {score} {count}"] = count
                row[f"psnr threshold {score} {count}"] = row[f"psnr top_k {score} {count}"]
            row[f"psnr threshold synthesis {count}"] += 1
    findings = SUITE.summarise(rows, plan)
    figures = {figure.name: figure for figure in findings.figures}
    area = figures["PSNR over random, entropy, mean over log rate"]
    assert (area.value, area.low, area.high) == pytest.approx((5, 5, 5))
    assert "best score by PSNR is entropy" in findings.verdicts[0] and "+5.00 dB" in findings.verdicts[0]
    for statistic in ("mean PSNR", "corpus PSNR", "PSNR of the worst tenth"):
        told = "calibrated for 50%"
        same = figures[f"{statistic} over a fixed count, threshold on gain, {told}"]
        assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-9)
        better = figures[f"{statistic} over a fixed count, threshold on synthesis, {told}"]
        assert (better.value, better.low) == pytest.approx((1, 1))
    told = [verdict for verdict in findings.verdicts if verdict.startswith("One threshold on gain")]
    assert len(told) == 2 and all(verdict.count("no clear difference") == 3 for verdict in told)
    by_synthesis = replace(plan, filter=replace(plan.filter, score="synthesis"))
    verdicts = SUITE.summarise(rows, by_synthesis).verdicts
    assert sum(verdict.count(", better") for verdict in verdicts if "threshold on synthesis" in verdict) == 6


def test_a_batch_does_not_matter_and_the_seed_does(
    small_plan: EvaluationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = SUITE.measure("000000", Bench(small_plan, device="cpu"))
    monkeypatch.setattr(base, "BATCH_IMAGES", 2)
    again = SUITE.measure("000000", Bench(small_plan, device="cpu"))
    assert [row["key"] for row in once] == [row["key"] for row in again] and len(once) == 5
    numeric = [name for name, value in once[0].items() if isinstance(value, float)]
    assert len(numeric) > 60
    for name in numeric:
        np.testing.assert_allclose(column(once, name), column(again, name), rtol=1e-4, err_msg=name)
    other = SUITE.measure("000000", Bench(replace(small_plan, seed=4), device="cpu"))
    changed = {
        name for name in numeric if not np.allclose(column(other, name), column(once, name), rtol=1e-4)
    }
    assert changed and all(" random " in name for name in changed)


def test_probes_are_filtered_as_the_plan_says(small_plan: EvaluationPlan) -> None:
    bench = Bench(small_plan, device="cpu")
    for kind in PROBES:
        rows = SUITE.measure(f"probe-{kind}", bench)
        assert len(rows) == NUM_PROBE_IMAGES
        assert {(row["kind"], row["is_probe"]) for row in rows} == {(kind, True)}
        costs = column(rows, "costs")
        wanted = np.maximum(1, (costs > small_plan.filter.value).sum(axis=1))
        assert column(rows, "kept filter").tolist() == wanted.tolist()


def test_what_a_checkpoint_is_not_calibrated_for_is_left_out_and_named(small_plan: EvaluationPlan) -> None:
    bench = Bench(small_plan, device="cpu")
    del bench.tokenizer.ladders["synthesis"]
    rows = SUITE.measure("000000", bench)
    assert not [
        name for name in rows[0] if name.startswith(("kept threshold synthesis", "kept proportional"))
    ]
    findings = SUITE.summarise(rows + SUITE.measure(f"probe-{PROBES[0]}", bench), small_plan)
    told = [verdict for verdict in findings.verdicts if verdict.startswith("Not measured")]
    assert len(told) == 1 and "threshold on synthesis, proportional on gain." in told[0]
    table = next(table for table in findings.tables if table.name == "rules")
    measured = {(row[0], row[1]) for row in table.rows}
    assert measured == set(SWEEPS) - {("threshold", "synthesis"), ("proportional", "gain")}


def test_what_cannot_be_summarised(small_plan: EvaluationPlan) -> None:
    rows: list[Row] = [{"is_probe": True}]
    with pytest.raises(UserError, match="none of its images can be decoded"):
        SUITE.summarise(rows, small_plan)
    assert "data=" in SUITE.missing(replace(small_plan, sources=()))
