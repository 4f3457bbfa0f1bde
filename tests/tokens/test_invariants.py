"""One rule at a time, broken in a record and in a table: both must see it, and neither must see it elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.format import to_table
from tatok_pipe.tokens.invariants import check_record, check_table
from tatok_pipe.tokens.spec import TokenSpec, token_schema

MakeRecords = Callable[..., list[TokenRecord]]


@pytest.fixture
def records(token_spec: TokenSpec, make_token_records: MakeRecords) -> list[TokenRecord]:
    """Ten rows; the one in the middle, "image-000005", keeps patches 0 and 15 and has all optional columns."""
    rows = make_token_records(token_spec, 10)
    entropy = np.linspace(0.1, 3.0, 16)
    rows[5] = dataclasses.replace(
        rows[5],
        global_codes=np.array([1, 2, 3], np.uint16),
        patch_codes=np.array([5, 6], np.uint32),
        patch_positions=np.array([0, 15], np.uint16),
        entropy_total=float(entropy.sum()),
        entropy_dropped=float(entropy[1:15].sum()),
        mutual_information=1.0,
        patch_entropy=entropy.astype(np.float32),
    )
    return rows


def change(table: pa.Table, changes: dict[str, Any]) -> pa.Table:
    """The table with these values in its row 5."""
    rows = table.to_pylist()
    rows[5] |= changes
    return pa.Table.from_pylist(rows, schema=table.schema)


def test_valid_rows_pass(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    for seed in range(5):
        records = make_token_records(token_spec, 200, seed=seed)
        for record in records:
            check_record(record, token_spec)
        table = to_table(records, token_schema(token_spec))
        check_table(table, token_spec)
        check_table(pa.concat_tables([table.slice(3, 50), table.slice(60, 0), table.slice(99)]), token_spec)
    check_table(table.slice(0, 0), token_spec)


BROKEN_BOTH = [
    ({"global_codes": [1, 2, 512]}, "global code"),
    ({"patch_codes": [5, 70_000]}, "patch code"),
    ({"patch_codes": [5]}, "1 patch codes but 2 positions"),
    ({"patch_positions": [15, 0]}, "not strictly increasing"),
    ({"patch_positions": [3, 3]}, "not strictly increasing"),
    ({"patch_positions": [3, 16]}, "patch position"),
    ({"entropy_total": float("nan")}, "entropy_total=nan"),
    ({"entropy_total": float("inf")}, "entropy_total=inf"),
    ({"entropy_dropped": -0.5}, "entropy_dropped=-0.5"),
    ({"entropy_dropped": 30.0}, "entropy_dropped=30.0, expected at most entropy_total=24."),
    ({"mutual_information": float("nan")}, "mutual_information=nan"),
    ({"mutual_information": float("-inf")}, "mutual_information=-inf"),
    ({"patch_entropy": [0.5] * 15}, "15 patch entropies, expected 16"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_BOTH)
def test_a_broken_row_is_named_in_either_form(
    token_spec: TokenSpec, records: list[TokenRecord], changes: dict[str, Any], message: str
) -> None:
    num_tokens = 3 + len(changes.get("patch_codes", [5, 6]))
    table = change(to_table(records, token_schema(token_spec)), {**changes, "num_tokens": num_tokens})
    with pytest.raises(ValueError, match=rf"^row 'image-000005': .*{message}"):
        check_table(table, token_spec)
    arrays = {name: np.array(value) if isinstance(value, list) else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=rf"^row 'image-000005': .*{message}"):
        check_record(dataclasses.replace(records[5], **arrays), token_spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 6}, r"num_tokens=6, expected 3 \+ 2"),
        ({"patch_entropy": [0.1] * 16}, "entropy_total=24[0-9.]+, its patch entropies give 1.6"),
        ({"patch_entropy": [float("nan")] * 16}, "a patch entropy is not a finite number"),
        ({"patch_entropy": [-0.5] + [1.687] * 15}, "a patch entropy is not a finite number"),
        ({"entropy_dropped": 20.0}, "entropy_dropped=20.0, its patch entropies give 21"),
        ({"patch_positions": [0, 1]}, "entropy_dropped=21[0-9.]+, its patch entropies give 24"),
    ],
)
def test_what_only_a_stored_row_can_break(
    token_spec: TokenSpec, records: list[TokenRecord], changes: dict[str, Any], message: str
) -> None:
    table = to_table(records, token_schema(token_spec))
    check_table(table, token_spec)
    with pytest.raises(ValueError, match=rf"^row 'image-000005': {message}"):
        check_table(change(table, changes), token_spec)


def test_positions_may_fall_from_one_row_to_the_next(
    token_spec: TokenSpec, records: list[TokenRecord]
) -> None:
    full = dataclasses.replace(
        records[5], patch_codes=np.arange(16), patch_positions=np.arange(16), entropy_dropped=0.0
    )
    check_table(to_table([full, full, full], token_schema(token_spec)), token_spec)


def test_all_dropped_may_exceed_the_total_by_a_step_and_no_more(
    token_spec: TokenSpec, records: list[TokenRecord]
) -> None:
    """Sums of float64 in another order, rounded to float32 in two ways."""
    none_kept = dataclasses.replace(
        records[5], patch_codes=np.zeros(0), patch_positions=np.zeros(0), patch_entropy=None
    )
    total = np.float32(24.8)
    step = np.nextafter(total, np.float32(99))
    for dropped, is_fine in ((total, True), (step, True), (np.nextafter(step, np.float32(99)), False)):
        record = dataclasses.replace(none_kept, entropy_total=float(total), entropy_dropped=float(dropped))
        for check, rows in (
            (check_record, record),
            (check_table, to_table([record], token_schema(token_spec))),
        ):
            if is_fine:
                check(rows, token_spec)  # pyright: ignore[reportArgumentType]
            else:
                with pytest.raises(ValueError, match="expected at most entropy_total"):
                    check(rows, token_spec)  # pyright: ignore[reportArgumentType]


def test_rounding_to_float32_stays_within_the_slack(token_spec: TokenSpec) -> None:
    """Entropies whose rounding errors all have one sign, normal and subnormal: the worst that there is."""
    for scale in (1.0, 1024.0, 2.0**-130):
        entropy = np.full(16, scale * (1 + 2.0**-24 * 0.999))
        stored = entropy.astype(np.float32)
        record = TokenRecord(
            "worst", None, None, None, 1, 1, 0, np.array([1, 2, 3]), np.array([1]), np.array([3]),
            entropy_total=float(entropy.sum()), entropy_dropped=float(entropy[1:].sum()), patch_entropy=stored,
        )  # fmt: skip
        error = abs(float(stored.astype(np.float64).sum()) - record.entropy_total)
        assert (
            error > 0.4 * record.entropy_total * 2.0**-24 or scale < 1
        )  # near the bound, or this shows nothing
        check_table(to_table([record], token_schema(token_spec)), token_spec)
        off = dataclasses.replace(record, entropy_total=record.entropy_total * (1 + 3 * 2.0**-21) + 1e-30)
        with pytest.raises(ValueError, match="its patch entropies give"):
            check_table(to_table([off], token_schema(token_spec)), token_spec)
