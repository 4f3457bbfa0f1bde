from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.findings import (
    Exhibit,
    Figure,
    Findings,
    Gallery,
    Pane,
    Plot,
    Provenance,
    Series,
    Table,
    plots_from_json,
    to_csv,
    to_json,
)
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.output import Earlier, overlay, read_earlier, write_suite
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.plots import render
from tatok_pipe.tokenizer.dtf import Filter
from tests.report.test_page import Page

EVIL = "<script>alert(1)</script>"
PLOT = Plot(
    "curve", "Quality", "tokens", "PSNR, dB", "n = 3 images",
    [
        Series("a line", [1, 2, 3], [20.0, 21.0, float("nan")], low=[19, 20, 21], high=[21, 22, 23]),
        Series("points", [1, 2], [20.0, 22.0], kind="points"),
        Series("bars", [1, 2], [20.0, 22.0], kind="bars", low=[19, 21], high=[21, 23]),
    ],
    caption="As measured.", has_diagonal=True,
)  # fmt: skip
FINDINGS = Findings(
    "reconstruction", f"Findings {EVIL}", verdicts=[f"It works {EVIL}."],
    figures=[Figure("PSNR", 21.123456789, "dB", 3, 20.0, float(np.float32(22.0)))],
    tables=[Table("quality", "Quality", ["name", "value"], [["a,b", 1.5], [EVIL, None]], note="A note.")],
    plots=[PLOT],
    galleries=[Gallery("Worst", "They are.", [Exhibit("one", [Pane("original", np.zeros((8, 8, 3), np.uint8))])])],
    images=Table("images", "Images", ["key", "psnr"], [["x", 1.0]]),
)  # fmt: skip
PLAN = EvaluationPlan(
    tokenizer="packaged", tokenizer_fingerprint="ab" * 32, image_size=32, filter=Filter("none", 0), sources=(),
    data="demo", features=FeaturesConfig(), seed=0, confidence=0.95, tokens="s3://key:secret@bucket/tokens",
)  # fmt: skip
PROVENANCE = Provenance("python -m tatok_pipe.evaluate", "1", "ab" * 32, 0, {"tokenizer": "packaged"})


def test_json_keeps_seven_digits_and_no_secrets_and_comes_back() -> None:
    content = json.loads(to_json(FINDINGS, replace(PROVENANCE, settings=PLAN.settings())))
    assert content["figures"] == {
        "PSNR": {"value": 21.12346, "unit": "dB", "n": 3, "low": 20.0, "high": 22.0}
    }
    assert content["plots"]["curve"]["series"][0]["y"] == [20.0, 21.0, None]
    assert "images" not in content and "galleries" not in content
    assert "secret" not in json.dumps(content) and content["settings"]["data"] == "demo"
    (plot,) = plots_from_json(content)
    assert plot.title == "Quality" and [each.kind for each in plot.series] == ["line", "points", "bars"]
    assert render(plot, image_format="svg")  # with a value that is missing


def test_csv_quotes_and_leaves_out_what_is_not_there() -> None:
    assert to_csv(FINDINGS.tables[0]) == f'name,value\n"a,b",1.5\n{EVIL},\n'


def test_a_plot_has_the_same_bytes_each_time_and_its_words() -> None:
    for image_format, mark in (("svg", b"<svg"), ("png", b"\x89PNG")):
        first = render(PLOT, image_format=image_format)
        assert mark in first and first == render(PLOT, image_format=image_format)
    assert render(replace(PLOT, title="Other"), image_format="png") != render(PLOT, image_format="png")


def test_files_of_a_suite_and_a_page_that_asks_for_nothing(tmp_path: Path) -> None:
    url = write_suite(FINDINGS, PLAN, str(tmp_path), [], command=f"evaluate {EVIL}", version="1")
    assert sorted(path.name for path in (tmp_path / "reconstruction").iterdir()) == [
        "images.csv", "plots", "quality.csv", "report.html", "results.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "reconstruction" / "plots").iterdir()) == [
        "curve.png", "curve.svg",
    ]  # fmt: skip
    page = Page(Path(url).read_text())
    assert not page.all("script") and EVIL in page.text
    assert [source for each in page.all("img") if not (source := str(each["src"])).startswith("data:")] == []
    assert all(each.get("alt") for each in page.all("img"))
    for told in ("21.12", "20 … 22", "A note.", "As measured.", "They are.", "original"):
        assert told in page.text, told


def test_earlier_results_are_drawn_over_and_put_beside(tmp_path: Path) -> None:
    write_suite(FINDINGS, PLAN, str(tmp_path / "old"), [], command="old", version="1")
    earlier = read_earlier(f"{tmp_path}/old/reconstruction/results.json, ")
    assert [each.name for each in earlier] == ["abababab (a)"]
    found = overlay(FINDINGS, earlier)
    assert [each.label for each in found.plots[0].series][2:4] == ["bars", "a line, abababab (a)"]
    assert found.tables[0].rows == [["PSNR", 21.123456789, 21.12346]]
    other = Earlier("x", earlier[0].content | {"figures": {}, "plots": {}})
    assert overlay(FINDINGS, [other]).tables[0].rows == [["PSNR", 21.123456789, None]]
    # Results of another suite have nothing to say here, and results.json is of this run alone.
    foreign = [Earlier("y", earlier[0].content | {"suite": "corpus"})]
    write_suite(FINDINGS, PLAN, str(tmp_path / "new"), [*foreign, *earlier], command="old", version="1")
    old, new = ((tmp_path / name / "reconstruction/results.json").read_bytes() for name in ("old", "new"))
    assert old == new
    text = (tmp_path / "new/reconstruction/report.html").read_text()
    assert "abababab (a): old" in text and "y: old" not in text


@pytest.mark.parametrize(
    "content", ["no json", "[]", "{}", '{"format": 9}', '{"format": 1, "tokenizer": "x"}']
)
def test_what_is_no_result_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"compare=.*a\.json: not the results\.json of a suite"):
        read_earlier(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"compare=.*b\.json: no such file"):
        read_earlier(str(tmp_path / "b.json"))


def test_another_plan_has_another_digest() -> None:
    assert PLAN.digest == replace(PLAN).digest
    for other in (replace(PLAN, seed=1), replace(PLAN, filter=Filter("top_k", 3)), replace(PLAN, data="x")):
        assert other.digest != PLAN.digest
