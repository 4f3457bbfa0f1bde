from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.digest import ContentDigest
from tatok_pipe.tokens.format import to_table
from tatok_pipe.tokens.spec import TokenSpec, token_schema

MakeRecords = Callable[..., list[TokenRecord]]


def digest_of(*batches: list[TokenRecord]) -> str:
    digest = ContentDigest()
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


def digest_of_table(spec: TokenSpec, records: list[TokenRecord], bounds: list[int]) -> str:
    table = to_table(records, token_schema(spec))
    digest = ContentDigest()
    for start, stop in zip([0, *bounds], [*bounds, len(records)], strict=True):
        digest.update_from_table(table.slice(start, stop - start))
    return digest.hexdigest()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 5))
def test_records_and_table_agree_in_any_batches(
    token_spec: TokenSpec, make_token_records: MakeRecords, cuts: list[int], seed: int
) -> None:
    records = make_token_records(token_spec, 60, seed=seed)
    bounds = sorted(cuts)
    parts = [records[a:b] for a, b in zip([0, *bounds], [*bounds, 60], strict=True)]
    assert digest_of(*parts) == digest_of(records) == digest_of_table(token_spec, records, bounds)


def test_nothing_has_a_digest(token_spec: TokenSpec) -> None:
    assert digest_of() == digest_of([]) == digest_of_table(token_spec, [], [])
    assert len(digest_of()) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "image-00000"},
        {"label": 8},
        {"label": None},
        {"caption": ""},
        {"caption": None},
        {"meta": "{}"},
        {"width": 11},
        {"height": 9},
        {"crop": 1},
        {"global_codes": np.array([1, 2, 4])},
        {"patch_codes": np.array([5, 6])},
        {"patch_codes": np.array([5])},
        {"patch_positions": np.array([0, 2])},
        {"entropy_total": float(np.nextafter(np.float32(9), np.float32(10)))},
        {"entropy_dropped": 2.5},
        {"mutual_information": None},
        {"mutual_information": 0.0},
        {"patch_entropy": None},
        {"patch_entropy": np.append(np.full(15, 0.5), 0.25)},
    ],
)
def test_every_field_counts(token_spec: TokenSpec, changes: dict) -> None:
    record = TokenRecord(
        key="image-000001", label=7, caption="c", meta=None, width=10, height=10, crop=0,
        global_codes=np.array([1, 2, 3]), patch_codes=np.array([5, 7]), patch_positions=np.array([0, 1]),
        entropy_total=9.0, entropy_dropped=2.0, mutual_information=1.0, patch_entropy=np.full(16, 0.5),
    )  # fmt: skip
    other = dataclasses.replace(record, **changes)
    assert digest_of([record]) != digest_of([other])
    assert digest_of_table(token_spec, [record], []) == digest_of([record])


def test_values_do_not_run_into_the_next_row(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    first, second = make_token_records(token_spec, 2)
    ab = [dataclasses.replace(first, key="a"), dataclasses.replace(second, key="bc")]
    bc = [dataclasses.replace(first, key="ab"), dataclasses.replace(second, key="c")]
    assert digest_of(ab) != digest_of(bc)
    assert digest_of([first, second]) != digest_of([second, first])


def test_dtypes_of_records_do_not_count(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    records = make_token_records(token_spec, 20)
    wide = [
        dataclasses.replace(
            each,
            patch_codes=each.patch_codes.astype(np.int64),
            patch_positions=each.patch_positions.astype(np.int32),
        )
        for each in records
    ]
    assert digest_of(wide) == digest_of(records)
