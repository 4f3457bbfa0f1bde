from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Provenance, to_json
from tatok_pipe.evaluation.pictures import plan_sources
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites.base import Row, code_bits
from tatok_pipe.evaluation.suites.reconstruction.suite import Reconstruction, codec_at
from tatok_pipe.tokenizer.dtf import Filter
from tests.evaluation.plans import make_plan
from tests.pictures import crop_members, small_tokenizer, write_shard

SUITE = Reconstruction()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> EvaluationPlan:
    folder = tmp_path_factory.mktemp("reconstruction")
    for number in range(2):
        write_shard(folder / f"{number}.tar", crop_members(6, first=6 * number))
    plan = make_plan(small_tokenizer(folder / "tokenizer"), filter=Filter("top_k", 5))
    return replace(plan, sources=tuple(plan_sources(str(folder), max_images=12)))


@pytest.fixture(scope="module")
def rows(plan: EvaluationPlan) -> list[Row]:
    bench = Bench(plan, device="cpu")
    return [row for part in SUITE.parts(plan) for row in SUITE.measure(part, bench)]


def test_rows_are_what_the_tokenizer_gives(plan: EvaluationPlan, rows: list[Row]) -> None:
    assert SUITE.parts(plan) == ["000000", "000001"] and len(rows) == 12
    assert {row["tokens"] for row in rows} == {2 + 5}
    row = rows[0]
    if row["picture"] is None:
        row = next(row for row in rows if row["picture"])
    pixels, filtered = (
        np.asarray(Image.open(io.BytesIO(row[name]))).astype(float)
        for name in ("picture", "filtered_picture")
    )
    expected = 10 * np.log10(255**2 / np.mean((pixels - filtered) ** 2))
    assert row["filtered_psnr"] == pytest.approx(expected, abs=0.05)  # the picture is rounded to bytes
    assert row["filtered_psnr"] != row["full_psnr"]
    # 16 patches, 5 kept; 125 codes each: 7 codes of log2 125 bits, and which of 4,368 sets of places.
    assert row["bits"] == pytest.approx(7 * np.log2(125) + np.log2(4368), abs=1e-3)
    assert sum(each["picture"] is not None for each in rows) == 8  # four of each part, for the worst ones


def test_findings_are_means_of_the_rows_and_the_same_each_time(plan: EvaluationPlan, rows: list[Row]) -> None:
    findings = SUITE.summarise(rows, plan)
    figures = {figure.name: figure for figure in findings.figures}
    assert figures["PSNR, with the filter"].value == pytest.approx(
        np.mean([row["filtered_psnr"] for row in rows])
    )
    assert figures["rFD-efficientnet, with the filter"].value > 0
    assert figures["tokens"].value == 7 and figures["tokens"].n == 12
    worst = min(rows, key=lambda row: row["filtered_psnr"])
    assert worst["key"] in findings.galleries[0].exhibits[0].caption
    assert findings.images is not None and len(findings.images.rows) == 12
    provenance = Provenance("x", "1", "y", 0, {})
    again = SUITE.summarise(SUITE.measure("000000", Bench(plan, device="cpu")) + rows[6:], plan)
    assert to_json(again, provenance) == to_json(findings, provenance)


def test_a_codec_stays_below_the_bytes_or_gives_its_least() -> None:
    pixels = (np.random.default_rng(0).random((64, 64, 3)) * 40 + np.arange(64)[:, None, None] * 3).astype(
        np.uint8
    )
    few, many, least = (codec_at(pixels, "JPEG", max_bytes=limit) for limit in (1_500, 4_000, 10))
    assert few and many and least
    assert few[0] <= 1_500 < many[0] <= 4_000 and few[1] < many[1]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=0, optimize=True)
    assert least[0] == len(file.getvalue())


def test_bits_of_all_patches_say_nothing_of_places(plan: EvaluationPlan) -> None:
    bits = code_bits(torch.tensor([0, 16]), bench=Bench(plan, device="cpu"))
    assert bits.tolist() == pytest.approx([2 * np.log2(125), 18 * np.log2(125)], abs=1e-4)
