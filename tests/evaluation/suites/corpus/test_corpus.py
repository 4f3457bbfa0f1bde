from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tatok_pipe.commands.evaluate.options import EvaluateConfig
from tatok_pipe.commands.evaluate.run import make_plan
from tatok_pipe.config.load import load_config
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Figure, Findings, Provenance, Table, to_json
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.plots import render
from tatok_pipe.evaluation.suites.corpus import pairs
from tatok_pipe.evaluation.suites.corpus.comparable import (
    EQUAL_GLOBALS,
    EQUAL_PATCHES,
    KEPT,
    OVERLAP,
    PATCH_CODES,
)
from tatok_pipe.evaluation.suites.corpus.describe_pairs import CORRELATION, DIFFERENCE, IDENTICAL
from tatok_pipe.evaluation.suites.corpus.drift import split_noise
from tatok_pipe.evaluation.suites.corpus.suite import Corpus
from tatok_pipe.evaluation.work import read_part, write_part
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.spec import FORMAT_VERSION
from tests.token_datasets import TINY, make_rows, write_token_dataset

SUITE = Corpus()
OTHER_FILTER = replace(TINY, dtf=replace(TINY.dtf, value=0.5))
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, shards, spec=TINY)`: the URL of a dataset."""

    def write_one(name: str, shards: Sequence[Sequence[TokenRecord]], spec=TINY) -> str:
        write_token_dataset(str(tmp_path / name), shards, spec=spec)
        return str(tmp_path / name)

    return write_one


def plan_of(first: str | None, other: str | None) -> EvaluationPlan:
    return EvaluationPlan(
        tokenizer="packaged", tokenizer_fingerprint="ab" * 32, image_size=32, filter=Filter("none", 0), sources=(),
        data="", features=FeaturesConfig(), seed=0, confidence=0.95, tokens=first, other_tokens=other,
    )  # fmt: skip


def compare(first: str, other: str, tmp_path: Path) -> Findings:
    """As a run does, through the files of the parts."""
    plan, rows = plan_of(first, other), []
    bench = Bench(plan, device="cpu")
    for part in SUITE.parts(plan):
        write_part(str(tmp_path / "out"), "corpus", part, plan, SUITE.measure(part, bench))
        rows += read_part(str(tmp_path / "out"), "corpus", part, plan)
    return SUITE.summarise(rows, plan)


def figure(findings: Findings, name: str) -> Figure:
    return {each.name: each for each in findings.figures}[name]


def table(findings: Findings, name: str) -> Table:
    return {each.name: each for each in findings.tables}[name]


def cells(findings: Findings, name: str) -> dict[str, Sequence]:
    """The rows of a table by their first cell."""
    return {str(row[0]): row[1:] for row in table(findings, name).rows}


def perturb(rows: Sequence[TokenRecord], *, seed: int = 0) -> list[TokenRecord]:
    """Every third image loses its first patch, every second has other global codes; a patch code changes here and
    there."""
    dice, changed = random.Random(seed), []
    for number, row in enumerate(rows):
        codes, places, globals_ = row.patch_codes.copy(), row.patch_positions, row.global_codes.copy()
        if number % 3 == 0 and len(codes) > 1:
            codes, places = codes[1:], places[1:]
        if number % 2 == 0:
            globals_[0] = (globals_[0] + 1) % TINY.global_vocab
        if len(codes) and dice.random() < 0.5:
            codes[0] = (codes[0] + 5) % TINY.patch_vocab
        changed.append(replace(row, patch_codes=codes, patch_positions=places, global_codes=globals_))
    return changed


def test_figures_are_those_of_a_plain_computation(tmp_path: Path, write: Write) -> None:
    shards = [make_rows(30, seed=1), make_rows(25, seed=1, first=30)]
    shards[1] = [replace(row, mutual_information=float(n)) for n, row in enumerate(shards[1])]
    others = [perturb(shards[0]), perturb(shards[1], seed=1)[:-5]]
    found = compare(write("a", shards), write("b", others, OTHER_FILTER), tmp_path)
    ours, theirs = sum(shards, []), sum(others, [])

    kept = [[len(row.patch_codes) for row in rows] for rows in (ours, theirs)]
    test: Any = stats.ks_2samp(kept[0], kept[1], method="asymp")
    assert figure(found, KEPT).value == pytest.approx(test.statistic)
    assert figure(found, f"{KEPT}: p-value").value == pytest.approx(test.pvalue)
    distance = figure(found, "Wasserstein distance of tokens")
    assert distance.value == pytest.approx(stats.wasserstein_distance(*kept)) and distance.n == 105

    shown = cells(found, "datasets")
    assert shown["images"] == [55, 50] and shown["token shards"] == [2, 2]
    assert shown["tokens/image, mean"] == pytest.approx([2 + np.mean(kept[0]), 2 + np.mean(kept[1])])
    assert shown["tokens/image, standard deviation"] == pytest.approx([np.std(kept[0]), np.std(kept[1])])
    assert shown["tokens/image, least"] == [2 + min(kept[0]), 2 + min(kept[1])]
    assert shown["tokens/image, most"] == [2 + max(kept[0]), 2 + max(kept[1])]
    assert shown["code entropy, nats/image"] == pytest.approx([16, 16])
    dropped = [np.mean([row.entropy_dropped for row in rows]) for rows in (ours, theirs)]
    assert shown["dropped of it, nats/image"] == pytest.approx(dropped)
    assert shown["I(globals; patches), nats/image"] == pytest.approx([12, 9.5])
    assert shown["filter"][0] != shown["filter"][1]
    counts = [Counter(np.concatenate([row.patch_codes for row in rows]).tolist()) for rows in (ours, theirs)]
    shares = [[each[code] / each.total() for code in range(TINY.patch_vocab)] for each in counts]
    assert shown["patch codes, perplexity"] == pytest.approx(
        [math.exp(stats.entropy(each)) for each in shares]
    )
    assert shown["patch codes, share used"] == [len(each) / TINY.patch_vocab for each in counts]
    middle = [(p + q) / 2 for p, q in zip(*shares, strict=True)]
    divergence = sum(stats.entropy(each, middle) for each in shares) / 2
    assert figure(found, PATCH_CODES).value == pytest.approx(divergence)

    assert json.loads(to_json(found, Provenance("", "", "", 0, {})))["figures"]
    assert "n = 55 and 50 images" in found.title and "dtf.value: 0.25, not 0.5" in found.verdicts[0]
    for plot in found.plots:
        assert render(plot, image_format="png")
    bars = next(plot for plot in found.plots if plot.name == "tokens")
    assert [sum(series.y) for series in bars.series] == pytest.approx([1, 1])


def agreement_of(ours: Sequence[TokenRecord], theirs: Sequence[TokenRecord]) -> dict[str, list[float]]:
    """By plain Python, for rows of the same keys and crops in any order."""
    other = {(row.key, row.crop): row for row in theirs}
    found: dict[str, list[float]] = {
        name: [] for name in (DIFFERENCE, EQUAL_GLOBALS, EQUAL_PATCHES, OVERLAP, IDENTICAL)
    }
    for row in ours:
        if (row.key, row.crop) not in other:
            continue
        its = other[row.key, row.crop]
        mine, yours = (
            dict(zip(each.patch_positions.tolist(), each.patch_codes.tolist(), strict=True))
            for each in (row, its)
        )
        both, either = mine.keys() & yours.keys(), mine.keys() | yours.keys()
        found[DIFFERENCE].append(len(yours) - len(mine))
        same = [a == b for a, b in zip(row.global_codes, its.global_codes, strict=True)]
        found[EQUAL_GLOBALS].append(sum(same) / len(same))
        if both:
            found[EQUAL_PATCHES].append(sum(mine[place] == yours[place] for place in both) / len(both))
        found[OVERLAP].append(len(both) / len(either) if either else 1.0)
        found[IDENTICAL].append(float(mine == yours and all(same)))
    return found


@pytest.mark.parametrize("max_cells", [1 << 22, 16 * 7])  # as few as seven images at once
def test_pairs_are_matched_by_key_and_crop_in_any_order(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, max_cells: int
) -> None:
    monkeypatch.setattr(pairs, "_MAX_CELLS", max_cells)
    # Two crops of each image, with tokens of their own; one image keeps no patch in either.
    rows = [
        replace(row, key=f"image-{number // 2}", crop=number % 2)
        for number, row in enumerate(make_rows(40, seed=2))
    ]
    nothing = np.zeros(0, np.uint16)
    rows[4] = replace(rows[4], patch_codes=nothing, patch_positions=nothing)
    shards = [rows[:22], rows[22:]]
    others = [perturb(shards[0])[3:], [*perturb(shards[1], seed=1), *make_rows(4, seed=9, first=900)]]
    for shard in others:
        random.Random(3).shuffle(shard)
    found = compare(write("a", shards), write("b", others, OTHER_FILTER), tmp_path)
    expected: dict[str, list[float]] = {}
    for ours, theirs in zip(shards, others, strict=True):
        for name, values in agreement_of(ours, theirs).items():
            expected.setdefault(name, []).extend(values)
    assert len(expected[OVERLAP]) == 37 and 0 < np.mean(expected[IDENTICAL]) < 1
    for name, values in expected.items():
        shown = figure(found, name)
        assert (shown.value, shown.n) == (pytest.approx(np.mean(values)), len(values)), name
        assert shown.low is not None and shown.low <= shown.value <= (shown.high or 0)
    tokens = [next(series for series in plot.series) for plot in found.plots if plot.name == "pairs"]
    correlation: Any = stats.spearmanr(tokens[0].x, tokens[0].y)
    assert figure(found, CORRELATION).value == pytest.approx(correlation.statistic)
    changed = table(found, "changed").rows
    assert len(changed) == 20 and {int(str(row[3])) - int(str(row[2])) for row in changed[:3]} == {-1}
    chance = cells(found, "pairs")[EQUAL_GLOBALS][3]
    first, other = (np.concatenate([row.global_codes for row in sum(each, [])]) for each in (shards, others))
    assert chance == pytest.approx(np.mean(first[:, None] == other[None]))


def test_the_same_dataset_twice_is_equal_in_everything(tmp_path: Path, write: Write) -> None:
    url = write("a", [make_rows(40), make_rows(24, first=40)])
    copy = write("b", [make_rows(40), make_rows(24, first=40)])
    for other in (url, copy):
        found = compare(url, other, tmp_path)
        for name in (EQUAL_GLOBALS, EQUAL_PATCHES, OVERLAP, IDENTICAL, CORRELATION):
            assert (figure(found, name).value, figure(found, name).n) == (pytest.approx(1), 64), name
        for name in (KEPT, PATCH_CODES, "Wasserstein distance of tokens", DIFFERENCE):
            assert figure(found, name).value == 0, name
        assert figure(found, f"{KEPT}: p-value").value == 1
        assert figure(found, f"{PATCH_CODES}: halves of both over halves of one").value == 1
        assert [row[-1] for row in table(found, "codes").rows] == ["no", "no"]
        assert "changed" not in [each.name for each in found.tables]
        assert not any("drifted" in verdict or "Left out" in verdict for verdict in found.verdicts)
        assert ("are the same dataset" in found.verdicts[0]) == (other == url)


@pytest.mark.parametrize("sizes", [(200, 200), (300, 60)])
def test_samples_of_one_distribution_are_no_drift_and_planted_drift_is_found(
    tmp_path: Path, write: Write, sizes: tuple[int, int]
) -> None:
    first = write("a", [make_rows(sizes[0], seed=1)])
    alike = compare(first, write("b", [make_rows(sizes[1], seed=2, first=5000)]), tmp_path)
    assert figure(alike, PATCH_CODES).value > 0  # noise
    assert [row[-1] for row in table(alike, "codes").rows] == ["no", "no"]
    assert "no drift beyond sampling noise" in alike.verdicts[1]
    assert "no image under the same key" in alike.verdicts[-1] and "pairs" not in [
        each.name for each in alike.tables
    ]

    # Fewer classes, so other codes; and half of the patches.
    planted = [
        replace(row, patch_codes=row.patch_codes[::2], patch_positions=row.patch_positions[::2])
        for row in make_rows(sizes[1], seed=2, first=5000, num_classes=2)
    ]
    drifted = compare(first, write("c", [planted]), tmp_path)
    assert [row[-1] for row in table(drifted, "codes").rows] == ["yes", "yes"]
    assert figure(drifted, f"{KEPT}: p-value").value < 1e-3 and "drifted beyond" in drifted.verdicts[1]


@pytest.mark.parametrize(
    "num_images, num_others, is_planted", [(600, 60, False), (60, 600, False), (600, 60, True)]
)
def test_drift_is_told_from_noise_where_codes_are_rare_and_images_few(
    num_images: int, num_others: int, is_planted: bool
) -> None:
    """Images have few of many codes each; divergences of such sizes alone would be called drift."""
    dice = np.random.default_rng(3)

    def groups(count: int, shares: np.ndarray) -> np.ndarray:
        found = np.zeros((8, len(shares)), np.int64)
        for image in range(count):
            codes = dice.choice(len(shares), 12, p=shares)
            found[image % 8] += dice.multinomial(50, np.bincount(codes, minlength=len(shares)) / 12)
        return found

    shares = 1 / np.arange(1, 2049)
    planted = np.where(np.arange(2048) % 2, 1.6, 0.4) * shares if is_planted else shares
    ours = groups(num_images, shares / shares.sum())
    noise = split_noise(ours, groups(num_others, planted / planted.sum()), confidence=0.95)
    assert noise is not None and noise.is_drift == is_planted


def test_half_as_many_patches_at_random_are_drift_of_counts_and_not_of_codes(
    tmp_path: Path, write: Write
) -> None:
    """Frequencies of fewer codes are noisier; that is no drift."""
    dice = np.random.default_rng(0)
    thinned = []
    for row in make_rows(250, seed=2, first=5000):
        keep = dice.random(len(row.patch_codes)) < 0.3
        thinned.append(
            replace(row, patch_codes=row.patch_codes[keep], patch_positions=row.patch_positions[keep])
        )
    found = compare(write("a", [make_rows(250, seed=1)]), write("b", [thinned]), tmp_path)
    assert figure(found, f"{KEPT}: p-value").value < 1e-3
    assert [row[-1] for row in table(found, "codes").rows] == ["no", "no"]


def test_what_two_tokenizers_do_not_share_is_left_out_and_told(tmp_path: Path, write: Write) -> None:
    other_spec = replace(
        TINY, num_globals=3, patch_vocab=16, num_patches=64, patch_size=4, tokenizer_fingerprint="34" * 32
    )
    url = write("a", [make_rows(10)])
    found = compare(url, write("b", [make_rows(10, spec=other_spec)], other_spec), tmp_path)
    names = [each.name for each in found.figures]
    assert not {KEPT, EQUAL_GLOBALS, EQUAL_PATCHES, OVERLAP, IDENTICAL, PATCH_CODES} & set(names)
    assert figure(found, DIFFERENCE).n == 10 and "Wasserstein distance of tokens" in names
    assert "Two tokenizers, 121212121212 and 343434343434" in found.verdicts[0]
    assert f"{EQUAL_PATCHES} (num_patches 16 and 64, patch_vocab 12 and 16)" in found.verdicts[-1]
    assert f"{EQUAL_GLOBALS} (num_globals 2 and 3)" in found.verdicts[-1]
    assert "too few images to tell drift from noise (n = 10 and 10 images)" in " ".join(found.verdicts)

    crops = replace(TINY, encoding={"crops": {"kind": "ten", "per_image": 10}})
    found = compare(url, write("c", [make_rows(10)], crops), tmp_path)
    assert "different crops of an image" in found.verdicts[-1]
    assert not {DIFFERENCE, OVERLAP} & {each.name for each in found.figures} and "10 crops" in found.title


def test_nothing_kept_anywhere(tmp_path: Path, write: Write) -> None:
    nothing = np.zeros(0, np.uint16)
    rows = [replace(row, patch_codes=nothing, patch_positions=nothing) for row in make_rows(40)]
    found = compare(write("a", [rows]), write("b", [rows, []]), tmp_path)
    assert figure(found, OVERLAP).value == 1 and figure(found, IDENTICAL).value == 1
    told = found.verdicts[-1]
    assert all(f"{name} (" in told for name in (PATCH_CODES, EQUAL_PATCHES, CORRELATION))
    assert json.loads(to_json(found, Provenance("", "", "", 0, {})))
    for plot in found.plots:
        assert render(plot, image_format="png")


def test_bad_datasets_are_told_in_one_line_that_names_the_key(tmp_path: Path, write: Write) -> None:
    url = write("a", [make_rows(4)])
    (tmp_path / "folder").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "_dataset.json").write_text(f'{{"format": {FORMAT_VERSION}}}')
    for other, message in (
        (
            str(tmp_path / "folder"),
            r"^other_tokens=\S+folder: no _dataset.json there, so it is no token dataset",
        ),
        (str(tmp_path / "nowhere"), r"^other_tokens=\S+nowhere: no _dataset.json there"),
        (str(broken), r"^other_tokens=\S+broken/_dataset.json: is broken"),
        (write("none", []), r"^other_tokens=\S+none: no images in it \(0 token shards\)"),
        (write("empty", [[], []]), r"^other_tokens=\S+empty: no images in it \(2 token shards\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            SUITE.parts(plan_of(url, other))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^tokens=.*: no _dataset.json"):
        SUITE.parts(plan_of(str(tmp_path / "folder"), url))
    assert SUITE.missing(plan_of(url, None)).startswith("other_tokens=,")
    assert SUITE.missing(plan_of(None, None)).startswith("tokens= and other_tokens=,")
    assert SUITE.missing(plan_of(url, url)) == ""


def test_a_dataset_of_two_settings_or_with_a_broken_shard_is_refused_by_name(
    tmp_path: Path, write: Write
) -> None:
    url = write("a", [make_rows(4), make_rows(4, first=4)])
    mixed = write("b", [make_rows(4)])
    write("c", [make_rows(4), make_rows(4, first=4)], OTHER_FILTER)
    name = TokenDataset(url).shards[1]
    shutil.copy(tmp_path / "c" / "data" / f"{name}.parquet", tmp_path / "b" / "data")
    plan = plan_of(url, mixed)
    refused = 0
    for part in SUITE.parts(plan):
        try:
            SUITE.measure(part, Bench(plan, device="cpu"))
        except RefusedError as error:
            assert name in str(error) and "dtf.value: 0.5, not 0.25" in str(error)
            refused += 1
    assert refused == 2  # its own part, and the one that pairs it

    shard = tmp_path / "b" / "data" / f"{name}.parquet"
    content = bytearray((tmp_path / "a" / "data" / f"{name}.parquet").read_bytes())
    content[60:200] = bytes(140)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"b/data/{name}\.parquet: .*inspect_tokens --verify"):
        for part in SUITE.parts(plan):
            SUITE.measure(part, Bench(plan, device="cpu"))


def test_parts_are_of_a_version_of_the_files(tmp_path: Path, write: Write) -> None:
    url, other = write("a", [make_rows(4)]), write("b", [make_rows(4)])
    plan = plan_of(url, other)
    before = SUITE.parts(plan)
    assert [part[:2] for part in before] == ["a-", "b-"] and SUITE.parts(plan) == before
    write("a", [make_rows(4), make_rows(6, first=4)])  # grows
    after = SUITE.parts(plan)
    assert len(after) == 3 and set(before) < set(after)
    name = TokenDataset(other).shards[0]
    shutil.copy(  # of another size
        tmp_path / "a" / "data" / f"{TokenDataset(url).shards[1]}.parquet",
        tmp_path / "b" / "data" / f"{name}.parquet",
    )
    assert len(set(SUITE.parts(plan)) & set(after)) == 1  # what has nothing to do with that file
    with pytest.raises(UserError, match="replaced or removed"):
        SUITE.measure(before[1], Bench(plan, device="cpu"))


def test_no_image_shards_are_needed(write: Write) -> None:
    url = write("a", [make_rows(4)])
    config = load_config(
        EvaluateConfig,
        ["suite=corpus", "data=null", f"tokens={url}", f"other_tokens={url}"],
        prog="",
        description="",
    )
    plan = make_plan(config)
    assert plan.sources == () and len(SUITE.parts(plan)) == 2
