"""Groups of made costs, whose ratios are known: 4,000 patches, threshold 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.plots import render
from tatok_pipe.evaluation.suites.base import Row
from tatok_pipe.evaluation.suites.rate_distortion.threshold_stability import Stability
from tatok_pipe.tokenizer.dtf import Filter

PLAN = EvaluationPlan(
    tokenizer="packaged", tokenizer_fingerprint="ab" * 32, image_size=32, filter=Filter("threshold", 1.0), sources=(),
    data="demo", features=FeaturesConfig(), seed=0, confidence=0.95,
)  # fmt: skip
NUM_PATCHES = 4000


def rows_of(kind: str, *, factor: float, is_probe: bool = False, num_images: int = 6) -> list[Row]:
    """Images whose costs lie evenly in 0 … 2 · factor, so that a threshold t keeps (1 - t / (2 · factor))."""
    costs = factor * 2 * (np.arange(NUM_PATCHES) + 0.5) / NUM_PATCHES
    return [
        {
            "key": f"{kind}{number}",
            "kind": kind,
            "is_probe": is_probe,
            "num_globals": 3,
            "num_patches": NUM_PATCHES,
            "costs": np.roll(costs, number).tolist(),
            "kept filter": int((costs > 1).sum()),
            "psnr filter": 20.0 + number,
        }
        for number in range(num_images)
    ]


NATURAL = rows_of("photo", factor=1) + rows_of("", factor=1)
MIXED = [
    *rows_of("text", factor=3, is_probe=True),
    *NATURAL,
    *rows_of("text", factor=2),
    *rows_of("texture", factor=0.75, is_probe=True),
]


def test_ratios_and_tokens_of_groups() -> None:
    """Half of the patches of natural images are kept; with costs that are `factor` times theirs the same share needs
    `factor` times the threshold."""
    table = Stability(MIXED, PLAN).table()
    found = {str(row[0]): row for row in table.rows}
    assert list(found) == ["natural", "text", "text probe", "texture probe"]
    for name, factor in (("natural", 1), ("text", 2), ("text probe", 3), ("texture probe", 0.75)):
        assert found[name][-1] == pytest.approx(factor, rel=0.001)
        assert found[name][2] == pytest.approx(3 + NUM_PATCHES * (1 - 0.5 / factor), abs=1)
        assert found[name][5] == 0  # the same count in each image
    assert found["natural"][1] == 12 and found["natural"][6] == pytest.approx(22.5)
    low, high = found["natural"][7], found["natural"][8]
    assert isinstance(low, float) and isinstance(high, float) and low < 22.5 < high
    verdict = Stability(MIXED, PLAN).verdict()
    assert "mean tokens of natural images" in verdict and "text 2.00, text probe 3.00" in verdict


def test_without_natural_images_the_data_are_the_reference() -> None:
    rows = rows_of("text", factor=2) + rows_of("text", factor=1, is_probe=True)
    stability = Stability(rows, PLAN)
    found = {str(row[0]): row[-1] for row in stability.table().rows}
    assert found["text"] == pytest.approx(1, rel=0.01) and found["text probe"] == pytest.approx(0.5, rel=0.01)
    assert "mean tokens of the data's images" in stability.verdict()


def test_only_a_threshold_has_a_ratio() -> None:
    stability = Stability(MIXED, replace(PLAN, filter=Filter("top_k", 200)))
    assert "threshold ratio" not in stability.table().columns
    assert not any("ratio" in figure.name for figure in stability.figures())
    assert "threshold" not in stability.verdict()


def test_bars_bear_the_names_of_groups() -> None:
    plot = Stability(MIXED, PLAN).plot()
    assert plot.x_labels == ["natural", "text", "text probe", "texture probe"]
    named = render(plot, image_format="svg")
    assert named != render(
        replace(plot, x_labels=["natural", "texts", "text probe", "texture probe"]), image_format="svg"
    )
    assert named.count(b"<svg") == 1
