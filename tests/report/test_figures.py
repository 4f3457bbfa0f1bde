from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas
import pytest

from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.report.figures import (
    SourceSizes,
    describe_filter,
    factor_saved,
    figure_lines,
    format_bytes,
    kept_share,
    percent,
    spearman,
    token_rate,
)
from tatok_pipe.report.inventory import Inventory
from tatok_pipe.tokens.format import empty_statistics
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
NO_SIZES = SourceSizes(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.bool_))


def test_rate_by_hand(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    spec = replace(token_spec, patch_vocab=1024)  # 3 globals of 9 bits, 16 patches of 10 bits
    statistics = empty_statistics(spec)
    record = make_token_records(spec, 1)[0]
    for kept in (1, 16):
        statistics.update([replace(record, patch_codes=np.zeros(kept), patch_positions=np.arange(kept))])
    rate = token_rate(statistics)
    assert rate.code_bits == pytest.approx(27 + (10 + 160) / 2)
    assert rate.position_bits == pytest.approx((4 + 0) / 2)  # one of 16 positions, then no choice
    assert rate.bits == rate.code_bits + rate.position_bits
    assert factor_saved(statistics) == pytest.approx(19 / 11.5)
    assert kept_share(statistics) == pytest.approx(17 / 32)


def test_rate_of_many_rows_is_the_sum_over_rows(
    token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, 50)
    statistics = empty_statistics(token_spec)
    statistics.update(records)
    choices = sum(math.log2(math.comb(16, len(record.patch_codes))) for record in records)
    assert token_rate(statistics).position_bits == pytest.approx(choices / 50)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_that_of_pandas(seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.integers(0, 8, 40)  # many ties
    b = a * random.normal(1, 1) + random.normal(0, 3, 40)
    expected = pandas.Series(a).corr(pandas.Series(b), method="spearman")
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_spearman_without_an_order() -> None:
    assert math.isnan(spearman(np.array([1, 2]), np.array([1, 2])))
    assert math.isnan(spearman(np.array([1, 1, 1]), np.array([1, 2, 3])))
    assert spearman(np.array([1, 2, 3]), np.array([10, 8, 1])) == -1


def test_correlation_is_of_jpegs_per_pixel() -> None:
    sizes = SourceSizes(
        num_tokens=np.array([1, 2, 3, 9]),
        num_bytes=np.array([300, 200, 100, 1]),
        num_pixels=np.array([300, 100, 10, 1000]),
        is_jpeg=np.array([True, True, True, False]),
    )
    assert sizes.correlation() == 1  # 1, 2 and 10 bytes a pixel; over all four it would not be
    assert sizes.num_jpegs == 3


def test_lines(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    statistics = empty_statistics(token_spec)
    statistics.update(make_token_records(token_spec, 40))
    bad = Quarantined("bad", "decode", "NotAnImage", "", 1)
    statistics.add_quarantined([bad, bad, replace(bad, error="Truncated")])
    inventory = Inventory([], statistics, num_planned=3, missing=["a"], failed={"b": "why"})
    lines = dict(figure_lines(token_spec, inventory, NO_SIZES))
    assert lines["tokenizer"].startswith("sha256:ababa, 3 global and up to 16 patch tokens")
    assert lines["filter"] == "threshold on entropy, value 0.25 nats, at least 1 patch"
    assert lines["shards"] == "3 planned, 0 committed, 1 missing, 1 failed"
    assert lines["quarantined"] == "3: NotAnImage 2, Truncated 1"
    assert lines["tokens/image"].startswith(
        f"{statistics.mean_tokens:.1f} ± {statistics.std_tokens:.1f} (p5 "
    )
    assert f"p95 {statistics.token_percentile(95)}" in lines["tokens/image"]
    assert lines["patch codes"].endswith(" of 70,000 used, perplexity " + lines["patch codes"].split()[-1])
    assert lines["JPEG bytes/pixel"] == "no correlation: 0 JPEGs sampled, 3 are needed that differ in both"
    assert "I(globals; patches)" in lines


def test_lines_without_images(token_spec: TokenSpec) -> None:
    inventory = Inventory([], empty_statistics(token_spec), num_planned=None, missing=[])
    lines = dict(figure_lines(token_spec, inventory, NO_SIZES))
    assert lines["images"] == "0"
    assert lines["shards"].startswith("an unknown number planned, 0 committed")
    assert not any("nan" in value for value in lines.values())


def test_rows_of_an_image_are_told_from_images(
    token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    spec = replace(token_spec, encoding={"crops": {"per_image": 10}})
    statistics = empty_statistics(spec)
    statistics.update(make_token_records(spec, 30) * 100)
    lines = dict(figure_lines(spec, Inventory([], statistics, num_planned=1, missing=[]), NO_SIZES))
    assert lines["images"] == "300, as 3,000 crops, 10 of each; all figures are of crops"


@pytest.mark.parametrize(
    ("dtf", "expected"),
    [
        (("none", "entropy", 0.0, 1), "none: all patches are kept"),
        (("top_k", "entropy", 64.0, 0), "top_k on entropy, value 64 patches, at least 0 patches"),
        (("budget", "entropy", 64.0, 1), "budget on entropy, value 64 nats, at least 1 patch"),
        (("threshold", "gain", 0.5, 1), "threshold on gain, value 0.5, at least 1 patch"),
        (("best", "beauty", 0.5, 1), "best on beauty, value 0.5, at least 1 patch"),  # of a later version
    ],
)
def test_filters(dtf: tuple[str, str, float, int], expected: str) -> None:
    assert describe_filter(FilterSpec(*dtf)) == expected


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.23 kB"),
        (999_999, "1.00 MB"),
        (22_000, "22.0 kB"),
        (5.2e11, "520 GB"),
    ],
)
def test_bytes(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_percent() -> None:
    assert percent(0.33333) == "33.3 %"
