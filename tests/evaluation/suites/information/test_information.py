from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Figure, Findings, Provenance, to_json
from tatok_pipe.evaluation.metrics import psnr
from tatok_pipe.evaluation.pictures import plan_sources, read_pictures, to_images
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.plots import render
from tatok_pipe.evaluation.suites import base
from tatok_pipe.evaluation.suites.base import Row
from tatok_pipe.evaluation.suites.information.reliability import reliability
from tatok_pipe.evaluation.suites.information.suite import Information, bound_filters, measure_dropped
from tatok_pipe.evaluation.suites.information.summary import BOUNDS, NUM_SHOWN, bound_name, draw_map
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats
from tests.evaluation.plans import make_plan
from tests.pictures import crop_members, encode, small_tokenizer, write_shard
from tests.tokenizer.conftest import small_config

SUITE = Information()
NUM_IMAGES = 9


def plan_of(tokenizer: str, shards: str, *, max_images: int = NUM_IMAGES) -> EvaluationPlan:
    plan = make_plan(tokenizer, filter=Filter("top_k", 5))
    return replace(plan, sources=tuple(plan_sources(shards, max_images=max_images)))


def measure(plan: EvaluationPlan) -> list[Row]:
    bench = Bench(plan, device="cpu")
    return [row for part in SUITE.parts(plan) for row in SUITE.measure(part, bench)]


def figures_of(findings: Findings) -> dict[str, Figure]:
    return {figure.name: figure for figure in findings.figures}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, whose globals differ from image to image and matter to all that reads them."""
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    tokenizer = load_tokenizer(small_tokenizer(Path(folder)))
    for weight in (tokenizer.model.prior.global_in, tokenizer.model.decoder.to_pixels.weight):
        torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(0))
    save_tokenizer(folder, tokenizer.model, ladders=tokenizer.ladders, training={})
    return folder


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shard(tmp_path_factory.mktemp("data") / "a.tar", crop_members(NUM_IMAGES))


@pytest.fixture(scope="module")
def plan(tokenizer: str, shard: str) -> EvaluationPlan:
    return plan_of(tokenizer, shard)


@pytest.fixture(scope="module")
def rows(plan: EvaluationPlan) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BATCH_IMAGES", 4)  # 4, 4 and 1 images
        return measure(plan)


def images_of(plan: EvaluationPlan) -> Tensor:
    return to_images(read_pictures(plan.sources[0], image_size=plan.image_size))


def test_entropy_and_surprisal_by_hand() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log() + 3
    assert entropy_nats(logits).item() == pytest.approx(1.5 * math.log(2))
    assert surprisal_nats(logits[None], torch.tensor([2])).item() == pytest.approx(math.log(4))


@torch.no_grad()
def test_rows_are_those_of_plain_probabilities(plan: EvaluationPlan, rows: list[Row]) -> None:
    model, images = load_tokenizer(plan.tokenizer).model, images_of(plan)
    encoded = model.encode(images)
    own, codes = encoded.globals.codes, encoded.patches.codes
    all_hidden = torch.ones(NUM_IMAGES, dtype=torch.bool)
    readings: list[np.ndarray] = []
    for hidden in (None, all_hidden):
        logits = model.predict(own, codes, without_globals=hidden).patch_logits.double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = np.take_along_axis(p, codes.numpy()[..., None], axis=-1)[..., 0]
        readings += [-(p * np.log(p)).sum(-1), -np.log(chosen)]
    names = ("entropy_nats", "surprisal_nats", "alone_entropy_nats", "alone_surprisal_nats")
    for name, values in zip(names, readings, strict=True):
        assert [row[name] for row in rows] == pytest.approx(values.sum(1).tolist(), rel=1e-5), name
    entropy, surprisal, alone_entropy, alone_surprisal = readings
    believed, gained = (alone_entropy - entropy).sum(1), (alone_surprisal - surprisal).sum(1)
    assert [row["information_nats"] for row in rows] == pytest.approx(believed.tolist(), abs=1e-3)
    assert [row["gain_nats"] for row in rows] == pytest.approx(gained.tolist(), abs=1e-3)
    assert np.abs(believed).min() > 0.01
    assert not np.allclose(believed, gained, atol=0.1)
    tokens = model.tokenize(images, plan.filter, with_mutual_information=True)
    assert tokens.mutual_information is not None
    assert tokens.mutual_information.tolist() == pytest.approx(believed.tolist(), abs=1e-3)
    # The curve is of all codes, wherever a batch ended.
    grids = [row["grid"] for row in rows if row["grid"] is not None]
    curve = reliability(np.reshape(grids[0], (3, -1)), num_bins=1)
    assert len(grids) == 1 and curve.count[0] == entropy.size
    assert curve.entropy[0] == pytest.approx(entropy.mean(), rel=1e-5)
    assert curve.surprisal[0] == pytest.approx(surprisal.mean(), rel=1e-5)


def test_another_image_s_globals(plan: EvaluationPlan, rows: list[Row]) -> None:
    model, images = load_tokenizer(plan.tokenizer).model, images_of(plan)
    tokens = model.tokenize(images, plan.filter)
    source = torch.tensor([3, 0, 1, 2, 3, 4, 5, 6, 7])  # the first of a part takes the last one of its batch
    others = tokens.global_codes[source]
    assert len(others.unique(dim=0)) > 4
    everything = torch.ones_like(tokens.keep)
    masks = {"full": everything, "filtered": tokens.keep, "none": ~everything}
    for variant, keep in masks.items():
        for whose, codes in (("own", tokens.global_codes), ("other", others)):
            expected = psnr(model.decode(codes, tokens.patch_codes, keep), images)
            assert [row[f"{variant}_{whose}_psnr"] for row in rows] == pytest.approx(
                expected.tolist(), abs=1e-3
            )
    logits = model.predict(others, tokens.patch_codes).patch_logits
    expected = surprisal_nats(logits, tokens.patch_codes).sum(1)
    assert [row["other_surprisal_nats"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    figures = figures_of(SUITE.summarise(rows, plan))
    losses = [row["full_own_psnr"] - row["full_other_psnr"] for row in rows]
    assert figures["another image's globals, all patches: loss of PSNR"].value == pytest.approx(
        np.mean(losses)
    )
    assert figures["another image's globals, all patches: images that lose"].value == pytest.approx(
        np.mean(np.array(losses) > 0)
    )


def test_images_that_are_all_the_same_lose_nothing(tokenizer: str, tmp_path: Path) -> None:
    picture = encode(Image.effect_mandelbrot((40, 40), (-2, -1, 1, 1), 40).convert("RGB"))
    shard = write_shard(tmp_path / "a.tar", [(f"{number}.png", picture) for number in range(3)])
    plan = plan_of(tokenizer, shard, max_images=3)
    figures = figures_of(SUITE.summarise(measure(plan), plan))
    changes = [figure for name, figure in figures.items() if name.startswith("another image's globals")]
    assert [figure.value for figure in changes] == [0.0] * 8


def test_an_image_alone_is_not_shuffled(tokenizer: str, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", crop_members(1, first=number))
    plan = plan_of(tokenizer, str(tmp_path), max_images=2)
    found = SUITE.summarise(measure(plan), plan)
    assert found.verdicts[-1] == "No part has two images: globals were not shuffled."
    assert [table.name for table in found.tables] == ["bound"]
    # Beside a part of two images it is left out of that section alone.
    write_shard(tmp_path / "2.tar", crop_members(2, first=4))
    plan = plan_of(tokenizer, str(tmp_path), max_images=6)
    figures = figures_of(SUITE.summarise(measure(plan), plan))
    assert figures["another image's globals, no patch: loss of PSNR"].n == 2
    assert figures["Î(G;P), by entropies"].n == 4


@pytest.mark.parametrize("num_globals", [0, 2])
def test_a_model_that_ignores_globals_has_no_information(
    num_globals: int, plan: EvaluationPlan, rows: list[Row], shard: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = TaTok(small_config(num_globals=num_globals)).eval()
    torch.nn.init.normal_(model.prior.patch_head.rows, std=0.5)
    for each in (model.prior.global_in, model.prior.no_global):
        torch.nn.init.zeros_(each)
    ladders = load_tokenizer(plan.tokenizer).ladders
    save_tokenizer(str(tmp_path), model, ladders=ladders, training={})
    ignorant = plan_of(str(tmp_path), shard)
    found = SUITE.summarise(measure(ignorant), ignorant)
    figures = figures_of(found)
    for name in ("Î(G;P), by entropies", "gain by surprisals"):
        assert (figures[name].value, figures[f"images above 0: {name}"].value) == (0, 0)
        assert figures_of(SUITE.summarise(rows, plan))[name].value != 0
    assert figures["another image's globals: surprisal of the patch codes, more"].value == 0
    assert found.verdicts[0].endswith("not told apart from 0.")


@pytest.mark.parametrize("seed", range(6))
def test_budgets_hold_and_sums_are_plain_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    entropy = random.gamma(2, 1.5, size=(5, 12)).astype(np.float32)
    surprisal = random.gamma(2, 1.5, size=(5, 12)).astype(np.float32)
    budget, tau = float(random.uniform(0, 40)), float(random.uniform(1, 5))
    filters = {"b": Filter("budget", budget, "entropy", 0), "t": Filter("threshold", tau, "entropy", 0)}
    found = measure_dropped(torch.from_numpy(entropy), torch.from_numpy(surprisal), filters)
    for image in range(5):
        dropped: list[int] = []
        for patch in sorted(range(12), key=lambda patch: float(entropy[image, patch])):
            if sum(float(entropy[image, each]) for each in (*dropped, patch)) > budget:
                break
            dropped.append(patch)
        for name, places in (("b", dropped), ("t", np.flatnonzero(entropy[image] <= tau).tolist())):
            assert found[f"{name}_kept"][image] == 12 - len(places)
            assert found[f"{name}_dropped_nats"][image] == pytest.approx(
                entropy[image, places].sum(), abs=1e-4
            )
            assert found[f"{name}_measured_nats"][image] == pytest.approx(
                surprisal[image, places].sum(), abs=1e-4
            )
            bits = math.log2(math.comb(12, len(places)))
            assert found[f"{name}_mask_bits"][image] == pytest.approx(bits, abs=1e-4)
        assert found["b_dropped_nats"][image] <= budget + 1e-9


def test_of_a_calibrated_model_a_causal_rule_loses_what_its_entropies_say() -> None:
    """Chains z_1 … z_8 drawn from a known p(z_i|z_<i): the surprisal of what is dropped is its entropy on average. A
    rule that looks at the code itself loses more than the entropies that it counts."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 6)) * np.array([4, 4, 2, 1, 0.5, 0.2])[:, None]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)  # of the next code by the last one
    state, entropy, surprisal = np.zeros(20_000, int), [], []
    for _ in range(8):
        drawn = (p[state].cumsum(1) > random.random((len(state), 1))).argmax(1)
        entropy.append(-(p[state] * np.log(p[state])).sum(1))
        surprisal.append(-np.log(p[state, drawn]))
        state = drawn
    h, s = (torch.from_numpy(np.stack(each, axis=1)) for each in (entropy, surprisal))
    found = measure_dropped(h, s, {"t": Filter("threshold", 1.2, "entropy", 0)})
    dropped, measured = found["t_dropped_nats"].mean().item(), found["t_measured_nats"].mean().item()
    assert 1 < found["t_kept"].double().mean() < 7
    assert measured == pytest.approx(dropped, rel=0.02)
    peeking = (s > h) & (h <= 1.2)  # drops what came as a surprise
    assert (s * peeking).sum(1).mean() > 1.3 * (h * peeking).sum(1).mean()


def test_filters_are_rungs_and_the_threshold_is_causal(tokenizer: str) -> None:
    ladders = load_tokenizer(tokenizer).ladders
    filters = bound_filters(ladders, num_patches=16)
    assert set(filters) == {bound_name(*each) for each in BOUNDS} and "budget_90" in filters
    for name, filter in filters.items():
        rule, share = name.split("_")
        assert (filter.rule, filter.min_patches) == (rule, 0)
        kept = next(kept for kept, value in ladders["entropy"][rule] if value == filter.value)
        assert kept == pytest.approx(16 * int(share) / 100, abs=1.0)
    cost = torch.rand(20, 16, generator=torch.Generator().manual_seed(0)) * 2
    later = cost.clone()
    later[:, 9:] = 0
    causal = replace(filters["threshold_50"], value=1.0)
    assert torch.equal(keep_mask(cost, causal)[:, :9], keep_mask(later, causal)[:, :9])
    sorts = replace(filters["budget_50"], value=6.0)
    assert not torch.equal(keep_mask(cost, sorts)[:, :9], keep_mask(later, sorts)[:, :9])


def test_findings_survive_parquet_and_are_the_same_each_time(plan: EvaluationPlan, rows: list[Row]) -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    read = pq.read_table(file).to_pylist()
    provenance = Provenance("evaluate", "1", "ab" * 32, 0, {})
    texts = {to_json(SUITE.summarise(each, plan), provenance) for each in (rows, read, rows)}
    assert len(texts) == 1
    found = SUITE.summarise(read, plan)
    assert [plot.name for plot in found.plots] == ["information", "calibration", "bound"]
    assert all(render(plot, image_format="png") for plot in found.plots)
    assert "stay within ε on all images" in found.verdicts[2] and len(found.verdicts) == 5
    assert found.images is not None and len(found.images.rows) == NUM_IMAGES
    assert not {"grid", "picture", "patch_entropy", "budget_90_value"} & set(found.images.columns)


def test_pictures_are_of_the_first_images(plan: EvaluationPlan, rows: list[Row]) -> None:
    assert [row["place"] for row in rows] == [*range(NUM_SHOWN), *[None] * (NUM_IMAGES - NUM_SHOWN)]
    # Of several parts the first images of all come before the second of any.
    twice = [row | {"key": f"{part} {row['key']}"} for part in "ab" for row in rows]
    (gallery,) = SUITE.summarise(twice, plan).galleries
    assert [exhibit.caption[0] for exhibit in gallery.exhibits] == list("ababab")
    (gallery,) = SUITE.summarise(rows, plan).galleries
    original, entropy, cost, kept = (pane.pixels for pane in gallery.exhibits[0].panes)
    expected = read_pictures(plan.sources[0], image_size=32)[0].pixels
    assert np.array_equal(original, expected)
    assert {each.shape for each in (entropy, cost, kept)} == {(32, 32, 3)}
    same = (kept == original).all(axis=2).reshape(4, 8, 4, 8).all(axis=(1, 3))
    assert same.sum() == 5 and "5 of 16 patches kept" in gallery.exhibits[0].caption
    # The five of highest cost, by the filter, are the brightest of the map.
    light = cost.astype(float).sum(axis=2)[::8, ::8]
    assert light[same].min() > light[~same].max()


def test_maps_brighten_with_their_values() -> None:
    picture = draw_map(np.array([0.0, 0.3, 0.7, 1.0]), image_size=6)
    assert picture.shape == (6, 6, 3) and picture.dtype == np.uint8
    blocks = picture.reshape(2, 3, 2, 3, 3).astype(float)
    assert blocks.std(axis=(1, 3)).max() == 0  # repeated, not smoothed
    light = (blocks[:, 0, :, 0] @ [0.299, 0.587, 0.114]).ravel()
    assert bool((np.diff(light) > 0).all())
