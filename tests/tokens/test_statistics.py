from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.format import empty_statistics, to_table
from tatok_pipe.tokens.spec import TokenSpec, token_schema
from tatok_pipe.tokens.statistics import (
    ShardStatistics,
    float32_toward_zero,
    information_edges,
    perplexity,
    used_share,
)

MakeRecords = Callable[..., list[TokenRecord]]


def statistics_of(spec: TokenSpec, records: list[TokenRecord]) -> ShardStatistics:
    statistics = empty_statistics(spec)
    statistics.update(records)
    return statistics


def merged(spec: TokenSpec, parts: list[ShardStatistics]) -> ShardStatistics:
    total = empty_statistics(spec)
    for part in parts:
        total.merge(part)
    return total


def test_counts_equal_a_plain_loop(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    records = make_token_records(token_spec, 300)
    statistics = statistics_of(token_spec, records)
    kept = [len(record.patch_codes) for record in records]
    lengths = [3 + each for each in kept]
    assert statistics.num_images == 300
    assert statistics.num_tokens == sum(lengths)
    assert statistics.kept_histogram.tolist() == [kept.count(number) for number in range(17)]
    assert statistics.mean_tokens == pytest.approx(np.mean(lengths))
    assert statistics.std_tokens == pytest.approx(np.std(lengths))
    for percent in (0, 5, 25, 50, 75, 95, 100):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert statistics.token_percentile(percent) == expected
    assert statistics.mean_entropy_nats == pytest.approx(
        np.mean([record.entropy_total for record in records])
    )
    assert statistics.mean_entropy_dropped_nats == pytest.approx(
        np.mean([r.entropy_dropped for r in records])
    )
    informations = [r.mutual_information for r in records if r.mutual_information is not None]
    assert 0 < len(informations) < 300
    assert statistics.mean_mutual_information_nats == pytest.approx(np.mean(informations), rel=1e-5)
    for code in (0, 17, 511):
        expected = sum(int(each == code) for record in records for each in record.global_codes)
        assert statistics.global_code_counts[code] == expected
    assert statistics.patch_code_counts.sum() == sum(kept)
    for record in records[:5]:
        assert all(statistics.patch_code_counts[code] for code in record.patch_codes)


def test_entropy_bins(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    largest = 16 * math.log(70_000)
    (record,) = make_token_records(token_spec, 1)
    totals = {0.0: 0, largest / 64 * 0.99: 0, largest / 64 * 1.01: 1, largest * 0.999: 63, largest * 2: 63}
    for total, expected in totals.items():
        statistics = statistics_of(token_spec, [dataclasses.replace(record, entropy_total=total)])
        assert statistics.entropy_histogram.nonzero()[0].tolist() == [expected]


def test_information_bins(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    """Bins of 24 / 64 in asinh(nats), written down without asinh: ln(x + sqrt(x² + 1))."""
    (record,) = make_token_records(token_spec, 1)
    for nats, expected in (
        (0.0, 32), (-1e-6, 31), (0.38, 32), (0.39, 33), (-0.39, 30), (5.0, 38), (81_000.0, 63),
        (1e6, 63), (-81_000.0, 0), (-1e6, 0),
    ):  # fmt: skip
        place = math.floor(
            (math.log(abs(nats) + math.sqrt(nats**2 + 1)) * math.copysign(1, nats) + 12) / 0.375
        )
        assert min(max(place, 0), 63) == expected
        statistics = statistics_of(token_spec, [dataclasses.replace(record, mutual_information=nats)])
        assert statistics.mutual_information_histogram.nonzero()[0].tolist() == [expected]
    nothing = statistics_of(token_spec, [dataclasses.replace(record, mutual_information=None)])
    assert nothing.mutual_information_histogram.sum() == 0


def test_a_value_on_an_edge_is_in_the_bin_above_it(
    token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    (record,) = make_token_records(token_spec, 1)
    edges = information_edges()
    assert edges.dtype == np.float32 and len(edges) == 65
    assert edges[32] == 0 and (edges == -edges[::-1]).all() and (np.diff(edges) > 0).all()
    for place in range(1, 64):
        on_edge = dataclasses.replace(record, mutual_information=float(edges[place]))
        assert statistics_of(token_spec, [on_edge]).mutual_information_histogram[place] == 1


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=4), seed=st.integers(0, 3))
def test_counting_a_table_is_counting_its_records(
    token_spec: TokenSpec, make_token_records: MakeRecords, cuts: list[int], seed: int
) -> None:
    records = make_token_records(token_spec, 150, seed=seed)
    table = to_table(records, token_schema(token_spec))
    counted = empty_statistics(token_spec)
    bounds = sorted(cuts)
    for start, stop in zip([0, *bounds], [*bounds, 150], strict=True):
        counted.update_from_table(table.slice(start, stop - start))
    expected = statistics_of(token_spec, records)
    assert counted.to_json() == expected.to_json()
    assert counted.differences(expected) == []
    assert counted.mutual_information_histogram.sum() == counted.mutual_information_count > 0


def test_differences_name_what_differs(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    records = make_token_records(token_spec, 20)
    mine, theirs = statistics_of(token_spec, records), statistics_of(token_spec, records)
    for field in dataclasses.fields(mine):
        if field.name in ("num_globals", "num_patches"):
            continue
        changed = statistics_of(token_spec, records)
        value = getattr(changed, field.name)
        if isinstance(value, np.ndarray):
            value[5] += 1
            expected = f"{field.name}[5]: {value[5] - 1}, not {value[5]}"
        elif isinstance(value, dict):
            value["A"] = 1
            expected = f"{field.name}: {{}}, not {{'A': 1}}"
        else:
            setattr(changed, field.name, value + 1)
            expected = f"{field.name}: {value}, not {value + 1}"
        assert mine.differences(changed) == [expected]
    assert mine.differences(theirs) == []
    other = ShardStatistics.empty(num_globals=3, num_patches=16, global_vocab=8, patch_vocab=8)
    assert mine.differences(other) == ["(K, N, V_g, V_p): (3, 16, 512, 70000), not (3, 16, 8, 8)"]


@pytest.mark.parametrize("name", ["kept_histogram", "entropy_histogram", "mutual_information_histogram"])
def test_json_of_another_shape_is_refused(token_spec: TokenSpec, name: str) -> None:
    value = empty_statistics(token_spec).to_json()
    value[name].append(0)
    with pytest.raises(ValueError, match=name):
        ShardStatistics.from_json(value)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6), order=st.randoms(use_true_random=False))
def test_any_grouping_and_order_gives_the_same(
    token_spec: TokenSpec, make_token_records: MakeRecords, cuts: list[int], order: Any
) -> None:
    records = make_token_records(token_spec, 120, seed=1)
    bounds = [0, *sorted(cuts), 120]
    parts = [statistics_of(token_spec, records[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    order.shuffle(parts)
    half = len(parts) // 2
    left = merged(token_spec, [merged(token_spec, parts[:half]), merged(token_spec, parts[half:])])
    assert (
        left.to_json() == merged(token_spec, parts).to_json() == statistics_of(token_spec, records).to_json()
    )


def test_plain_float_sums_would_not_merge(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    """The reason for integer units, and a guard that the test above could fail."""
    totals = [np.float32(record.entropy_total) for record in make_token_records(token_spec, 120, seed=1)]
    assert sum(totals[:60], np.float32(0)) + sum(totals[60:], np.float32(0)) != sum(totals, np.float32(0))


def test_json_round_trip_is_exact_and_deterministic(
    token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    statistics = statistics_of(token_spec, make_token_records(token_spec, 50))
    statistics.bytes_in = 12345
    reasons = [Quarantined(str(n), "decode", error, "", 1) for n, error in enumerate(("B", "A", "B"))]
    statistics.add_quarantined(reasons)
    text = json.dumps(statistics.to_json())
    again = ShardStatistics.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert (again.patch_code_counts == statistics.patch_code_counts).all()
    assert again.quarantine_reasons == {"A": 1, "B": 2}
    again.merge(statistics)  # read-only arrays would fail here
    assert again.num_images == 100
    assert again.quarantine_reasons == {"A": 2, "B": 4}
    assert again.bytes_in == 24690


def test_nothing_counted(token_spec: TokenSpec) -> None:
    statistics = empty_statistics(token_spec)
    statistics.update([])
    summary = statistics.to_summary()
    assert summary["mean_tokens"] is None
    assert summary["percentile_tokens"]["50"] is None
    assert summary["patch_code_perplexity"] == 0.0
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError, match="no images"):
        statistics.token_percentile(50)


def test_other_shapes_do_not_merge(token_spec: TokenSpec) -> None:
    other = ShardStatistics.empty(num_globals=3, num_patches=16, global_vocab=8, patch_vocab=8)
    with pytest.raises(ValueError, match=r"\(3, 16, 8, 8\) do not merge into \(3, 16, 512, 70000\)"):
        empty_statistics(token_spec).merge(other)


def test_codebook_figures() -> None:
    assert perplexity(np.array([5, 5, 5, 5])) == pytest.approx(4.0)
    assert perplexity(np.array([7, 0, 0, 0])) == pytest.approx(1.0)
    assert perplexity(np.array([1, 3])) == pytest.approx(4 / 3**0.75)  # exp(-(1/4 ln 1/4 + 3/4 ln 3/4))
    assert used_share(np.array([1, 0, 2, 0])) == 0.5


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_float32_toward_zero(values: list[float]) -> None:
    rounded = float32_toward_zero(values)
    assert rounded.dtype == np.float32
    for value, low in zip(values, rounded, strict=True):
        assert float(low) <= value
        assert float(np.nextafter(low, np.float32(np.inf))) > value


def test_rounding_to_nearest_would_exceed_a_budget() -> None:
    budgets = np.linspace(0.1, 9.9, 99)
    lifted = budgets[budgets.astype(np.float32).astype(np.float64) > budgets]
    assert len(lifted) > 20  # so the test above is not vacuous
    assert all(float32_toward_zero(list(lifted)).astype(np.float64) <= lifted)
