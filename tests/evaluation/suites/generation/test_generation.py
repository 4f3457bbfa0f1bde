"""Generated images beside real ones: what an image depends on, and figures against those computed another way."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.nn.functional as F
from scipy import linalg
from torch import Tensor

from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.generation.job import GenerationPlan
from tatok_pipe.ar.generation.layout import read_shard, shard_name
from tatok_pipe.ar.generation.worker import GenerateJob
from tatok_pipe.ar.options import GeneratorConfig, SamplingConfig
from tatok_pipe.commands.evaluate.options import EvaluateConfig, GenerationConfig
from tatok_pipe.commands.evaluate.run import make_plan
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation import drawing
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.features import Features
from tatok_pipe.evaluation.findings import Findings, Provenance, to_json
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites import SUITES
from tatok_pipe.evaluation.suites.base import Row, column
from tatok_pipe.evaluation.suites.generation import suite as generation
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokens.spec import FilterSpec
from tests.generation.models import CLASSES, Models, save_models
from tests.pictures import crop_members, write_shard

SUITE = SUITES["generation"]
FILTER = DTFConfig(rule="coverage", score="synthesis", value=0.6)
NUM_DRAWN, NUM_REAL = 20, 24


class _Colours:
    """Stands for the network: colours of a grid of 2 × 2, (B, 12), and sums of theirs, (B, 4)."""

    def __call__(self, images: Tensor) -> Features:
        grid = F.adaptive_avg_pool2d(images, 2).flatten(1)
        return Features(grid.numpy(), 4 * grid.unflatten(1, (4, 3)).sum(2).numpy())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def config(models: Models, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("images")
    members = crop_members(NUM_REAL)
    write_shard(folder / "a.tar", members[:NUM_REAL])  # an image has two members
    write_shard(folder / "b.tar", members[NUM_REAL:])
    return EvaluateConfig(
        tokenizer=models.tokenizer, generator=models.generator, data=str(folder), max_images=NUM_REAL, dtf=FILTER,
        generation=GenerationConfig(num_images=NUM_DRAWN),
    )  # fmt: skip


@pytest.fixture(scope="module")
def plan(config: EvaluateConfig) -> EvaluationPlan:
    return make_plan(config)


@pytest.fixture(scope="module")
def rows(plan: EvaluationPlan) -> list[Row]:
    return measure(plan)


def measure(plan: EvaluationPlan) -> list[Row]:
    """All rows, through Parquet as in a run."""
    bench = Bench(plan, device="cpu")
    vars(bench)["features"] = _Colours()
    rows: list[Row] = []
    for part in SUITE.parts(plan):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(SUITE.measure(part, bench)), file)
        rows += pq.read_table(file).to_pylist()
    return rows


def of(rows: list[Row], told: str) -> list[Row]:
    return [row for row in rows if row["set"] == told]


def values(findings: Findings) -> dict[str, float]:
    return {figure.name: figure.value for figure in findings.figures}


def test_an_image_does_not_depend_on_the_size_of_its_part(
    plan: EvaluationPlan, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (drawing, generation):
        monkeypatch.setattr(module, "PART_IMAGES", 7)
    assert len(SUITE.parts(plan)) == 3 + 2
    assert of(measure(plan), "adaptive") == of(rows, "adaptive")
    more = of(measure(replace(plan, num_generated=23)), "adaptive")
    assert more[:NUM_DRAWN] == of(rows, "adaptive")
    other = of(measure(replace(plan, seed=1)), "adaptive")
    assert all(a["features"] != b["features"] for a, b in zip(other, more, strict=False))


def test_images_are_those_that_generate_makes(
    models: Models, plan: EvaluationPlan, rows: list[Row], tmp_path: Path
) -> None:
    job = GenerateJob(
        generator=models.generator, tokenizer=models.tokenizer,
        generator_fingerprint=load_generator(models.generator).fingerprint,
        tokenizer_fingerprint=models.spec.tokenizer_fingerprint, output_url=str(tmp_path),
        plan=GenerationPlan(NUM_DRAWN, 100, plan.seed, tuple(range(10)), SamplingConfig(), None, None, None),
        layout="files", image_format="png", num_slots=5, precision="fp32", steps="torch",
    )  # fmt: skip
    assert not job.start_worker(device="cpu", num_threads=1)(shard_name(0), max_tries=1).error
    made = list(read_shard(str(tmp_path), shard_name(0), layout="files", image_format="png"))
    drawn = of(rows, "adaptive")
    assert [row["label"] for row in drawn] == [image.label for image in made] == [*range(10), *range(10)]
    assert [row["num_tokens"] for row in drawn] == [3 + len(image.patch_codes) for image in made]
    assert len({row["num_tokens"] for row in drawn}) > 1
    assert [row["picture"] for row in drawn] == [image.image for image in made[:12]] + [None] * 8


def test_guidance_changes_images(plan: EvaluationPlan, rows: list[Row]) -> None:
    guided = of(measure(replace(plan, guidance=3.0, sources=plan.sources[:1])), "adaptive")
    assert [row["features"] for row in guided] != [row["features"] for row in of(rows, "adaptive")]


def test_real_images_have_the_tokens_that_the_filter_leaves(
    config: EvaluateConfig, plan: EvaluationPlan, rows: list[Row]
) -> None:
    counts = [row["num_tokens"] for row in of(rows, "real")]
    assert len(counts) == NUM_REAL and len(set(counts)) > 1 and min(counts) > 3 and max(counts) < 19
    unfiltered = make_plan(replace(config, dtf=DTFConfig(rule="none")))
    assert {row["num_tokens"] for row in of(measure(unfiltered), "real")} == {19}
    assert sum(row["picture"] is not None for row in of(rows, "real")) == generation.NUM_SHOWN


def test_figures_against_rows(plan: EvaluationPlan, rows: list[Row]) -> None:
    findings = SUITE.summarise(rows, plan)
    found = values(findings)
    ours, real = of(rows, "adaptive"), of(rows, "real")
    x, y = column(ours, "features"), column(real, "features")
    assert found["gFD-efficientnet, adaptive"] == pytest.approx(frechet(x, y), rel=1e-5)
    tokens = [np.array([row["num_tokens"] for row in each]) for each in (ours, real)]
    gaps = [abs((tokens[0] <= at).mean() - (tokens[1] <= at).mean()) for at in range(20)]
    assert found["lengths, generated against real: KS statistic"] == pytest.approx(max(gaps))
    mean = sum(tokens[0]) / NUM_DRAWN
    assert found["tokens, adaptive"] == pytest.approx(mean)
    # 3 globals and 16 patches against what was drawn and END.
    assert found["expected speed ratio by steps, against all tokens"] == pytest.approx(19 / (mean + 1))
    assert found["precision, adaptive"] == pytest.approx(covered(x, y))
    assert found["recall, adaptive"] == pytest.approx(covered(y, x))
    p = np.exp(column(ours, "logits").astype(np.float64))
    p /= p.sum(1, keepdims=True)
    score = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert found["IS-efficientnet, adaptive"] == pytest.approx(score)
    (table,) = findings.tables
    assert [row[:2] for row in table.rows] == [[12, "adaptive"], [12, "real, the other half"]]
    assert found["FD-efficientnet, floor: halves of the real images"] == table.rows[1][2]
    assert [len(gallery.exhibits) for gallery in findings.galleries] == [12, 12]
    assert {figure.n for figure in findings.figures} == {12, NUM_DRAWN, NUM_REAL}


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The equation, with scipy's square root."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    root: Any = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)


def covered(points: np.ndarray, manifold: np.ndarray) -> float:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum() ** 0.5)

    radii = [sorted(distance(a, b) for b in manifold)[3] for a in manifold]  # the first is the point itself
    within = [
        any(distance(point, a) <= radius for a, radius in zip(manifold, radii, strict=True))
        for point in points
    ]
    return sum(within) / len(points)


def test_a_baseline_that_is_the_same_has_the_same_figures(config: EvaluateConfig, rows: list[Row]) -> None:
    plan = make_plan(replace(config, baseline=config.tokenizer, baseline_generator=config.generator))
    assert [part.split("-")[0] for part in SUITE.parts(plan)] == ["gen", "base", "real", "real"]
    both = measure(plan)
    assert of(both, "adaptive") == of(rows, "adaptive")
    findings = SUITE.summarise(both, plan)
    found = values(findings)
    pairs = {name: name.replace("adaptive", "baseline") for name in found if "adaptive" in name}
    assert len(pairs) == 6
    assert {found[ours] for ours in pairs} == {found[theirs] for theirs in pairs.values()}
    assert all(found[ours] == found[theirs] for ours, theirs in pairs.items())
    assert any("equal to the baseline's" in verdict for verdict in findings.verdicts)
    # A generator of filtered tokens is no baseline, and that is told.
    assert any("instead of its fixed 19" in verdict for verdict in findings.verdicts)


def test_twice_is_the_same_to_the_byte(plan: EvaluationPlan, rows: list[Row]) -> None:
    provenance = Provenance("command", "0", plan.tokenizer_fingerprint, plan.seed, plan.settings())
    once, again = (to_json(SUITE.summarise(each, plan), provenance) for each in (rows, measure(plan)))
    assert once == again


def test_what_is_missing(plan: EvaluationPlan) -> None:
    assert SUITE.missing(plan) == ""
    assert SUITE.missing(replace(plan, generator=None)).startswith("generator=")
    assert SUITE.missing(replace(plan, sources=())).startswith("data=")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer": "other"}, r"^tokenizer=\S+: has fingerprint \w{12}, and generator=\S+ was trained on"),
        ({"baseline_generator": "mine"}, "^baseline_generator=.*: expected baseline too"),
        ({"baseline": "other", "baseline_generator": "mine"}, "^baseline=.* and baseline_generator="),
        ({"generator": None, "baseline": "mine", "baseline_generator": "mine"}, "expected generator too"),
    ],
)
def test_models_that_do_not_belong_together(
    config: EvaluateConfig, models: Models, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    other = save_models(tmp_path, seed=5)
    urls = {
        name: {"mine": models, "other": other}[of].generator
        if "generator" in name
        else {"mine": models, "other": other}[of].tokenizer
        for name, of in changes.items()
        if of is not None
    }
    with pytest.raises(UserError, match=told) as error:
        make_plan(replace(config, **(changes | urls)))
    assert "\n" not in str(error.value)


def test_guidance_needs_classes(config: EvaluateConfig, tmp_path: Path) -> None:
    models = save_models(tmp_path, GeneratorConfig(width=64, depth=2, heads=4, condition="none"))
    guided = replace(
        config, tokenizer=models.tokenizer, generator=models.generator, generation=GenerationConfig(20, 2.0)
    )
    with pytest.raises(UserError, match=r"generation\.guidance=2: expected 1"):
        make_plan(guided)
    unguided = measure(make_plan(replace(guided, generation=GenerationConfig(4), max_images=2)))
    assert {row["label"] for row in of(unguided, "adaptive")} == {None}


def test_what_was_never_trained_is_not_evaluated(config: EvaluateConfig, tmp_path: Path) -> None:
    training = {"config": {"drop_condition": 0}, "untrained_classes": [0, 2]}
    models = save_models(
        tmp_path, GeneratorConfig(width=64, depth=2, heads=4, num_classes=4), training=training
    )
    given = replace(
        config, tokenizer=models.tokenizer, generator=models.generator, generation=GenerationConfig(4, 2.0)
    )
    with pytest.raises(UserError, match=r"guidance: expected 1, .*drop_condition=0.1") as error:
        make_plan(given)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    unguided = measure(make_plan(replace(given, generation=GenerationConfig(4), max_images=2)))
    assert [row["label"] for row in of(unguided, "adaptive")] == [1, 3, 1, 3]


def made_up(told: str, count: int, *, shift: float, tokens: tuple[int, int], seed: int) -> list[Row]:
    """Features are drawn; lengths go through `tokens` in turn, so that equal ones are equal whatever the seed."""
    random = np.random.default_rng(seed)
    return [
        {
            "set": told, "key": str(number), "label": None, "picture": None, "full_tokens": 272,
            "num_classes": 0, "condition": "none", "has_filter": True,
            "num_tokens": tokens[0] + number % (tokens[1] - tokens[0]),
            "features": random.normal(shift, 1, 8), "logits": random.normal(size=5),
        }
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(("shift", "tokens"), [(0.0, (40, 90)), (1.5, (60, 110))])
def test_what_is_planted_is_found_and_nothing_else(
    plan: EvaluationPlan, shift: float, tokens: tuple[int, int]
) -> None:
    rows = made_up("adaptive", 100, shift=shift, tokens=tokens, seed=1)
    rows += made_up("real", 200, shift=0.0, tokens=(40, 90), seed=2)
    findings = SUITE.summarise(rows, plan)
    found = values(findings)
    floor = found["FD-efficientnet, floor: halves of the real images"]
    ours = found["gFD-efficientnet, adaptive, n of the floor"]
    is_planted = shift > 0
    assert (ours > 5 * floor) == is_planted  # 8 features, each moved by 1.5: 18 more than the floor
    assert ours - floor == pytest.approx(8 * shift**2, rel=0.2, abs=0.5)
    assert any("differ in distribution" in verdict for verdict in findings.verdicts) == is_planted
    (curve,) = (plot for plot in findings.plots if plot.name == "distance_by_n")
    real = next(series for series in curve.series if series.label.startswith("real"))
    assert [*real.x] == [25, 50, 100] and sorted(real.y, reverse=True) == [*real.y]


def test_what_a_reader_has_to_know_is_told(plan: EvaluationPlan) -> None:
    rows = made_up("adaptive", 9, shift=0.0, tokens=(40, 90), seed=1)
    rows += made_up("real", 9, shift=0.0, tokens=(40, 90), seed=2)
    quiet = " ".join(SUITE.summarise(rows, plan).verdicts)
    assert "another filter" not in quiet and "classes alone" not in quiet and "without any" not in quiet
    assert "n alone" not in quiet  # nine real images have no halves to compare
    changes = {"has_filter": False, "num_classes": 10, "condition": "embedding"}
    told = " ".join(SUITE.summarise([row | changes for row in rows], plan).verdicts)
    assert "another filter" in told and "The first 9 of 10 classes" in told and "without any" in told
    with pytest.raises(UserError, match="1 images could be read"):
        SUITE.summarise(rows[:10], plan)


def test_generators_know_their_filter(models: Models, plan: EvaluationPlan) -> None:
    generator = load_generator(models.generator)
    drawn = Bench(plan, device="cpu").generator
    assert drawn is not None and not drawn.has_filter(plan.filter)  # the tiny one was told none
    spec = replace(generator.tokens, dtf=FilterSpec("coverage", "synthesis", 0.6, 1))
    drawn.generator = replace(generator, tokens=spec)
    assert drawn.has_filter(plan.filter) and not drawn.has_filter(replace(plan.filter, value=0.5))
    assert drawn.num_classes == CLASSES.num_classes
