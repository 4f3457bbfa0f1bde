"""Rows that hold scores of their patches: what is written is read, and what is none is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.checking.check import CorruptShard, Damage, verify_shard_file, verify_written
from tatok_pipe.tokens.digest import ContentDigest
from tatok_pipe.tokens.format import ShardSource, ShardWriter, read_records, to_table
from tatok_pipe.tokens.invariants import check_record, check_table
from tatok_pipe.tokens.spec import TokenSpec, token_schema
from tests.token_datasets import TINY, make_rows

SPEC = replace(TINY, encoding={"scores": True})
SOURCE = ShardSource("/images/0.tar", 1000)


def scored(count: int) -> list[TokenRecord]:
    random = np.random.default_rng(0)
    rows = []
    for row in make_rows(count):
        entropy = random.gamma(2.0, 1.0, SPEC.num_patches).astype(np.float32)
        exact = entropy.astype(np.float64)
        rows.append(
            replace(
                row,
                patch_entropy=entropy,
                patch_score=random.normal(0, 1e-3, SPEC.num_patches).astype(np.float16),
                entropy_total=float(exact.sum()),
                entropy_dropped=float(np.delete(exact, row.patch_positions).sum()),
            )
        )
    return rows


def write(path: Path, rows: list[TokenRecord], spec: TokenSpec = SPEC) -> ShardWriter:
    with ShardWriter(path, spec, SOURCE) as writer:
        writer.append(rows)
    return writer


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = scored(2100)  # more than a row group
    assert len(verify_written(write(tmp_path / "a.parquet", rows)).keys) == 2100
    for row, found in zip(rows, read_records(str(tmp_path / "a.parquet")), strict=True):
        assert found.patch_score is not None and found.patch_score.dtype == np.float16
        assert np.array_equal(found.patch_score, row.patch_score)  # type: ignore[arg-type]
    assert pq.read_schema(tmp_path / "a.parquet").field("patch_score").type.value_type == pa.float16()
    verify_written(write(tmp_path / "none.parquet", []))
    assert "patch_score" not in token_schema(TINY).names  # nor in any dataset that did not ask for them


def test_the_digest_has_them_and_is_what_it_was_without() -> None:
    rows = scored(5)
    table = to_table(rows, token_schema(SPEC))
    from_records, from_table = ContentDigest(), ContentDigest()
    from_records.update([])
    from_records.update(rows[:2])
    from_records.update(rows[2:])
    from_table.update_from_table(table.slice(0, 0))
    from_table.update_from_table(table)
    assert from_records.hexdigest() == from_table.hexdigest()
    other, without = ContentDigest(), ContentDigest()
    changed = rows[0].patch_score
    assert changed is not None
    other.update([replace(rows[0], patch_score=np.nextafter(changed, np.float16(1))), *rows[1:]])
    assert other.hexdigest() != from_records.hexdigest()
    without.update([replace(row, patch_score=None) for row in rows])
    assert without.hexdigest() != from_records.hexdigest()
    # Of rows without scores: as it was before there were any.
    plain = ContentDigest()
    plain.update(make_rows(5))
    assert plain.hexdigest() == "4f9c8d9a72e2a2b9b73beeed7388e3d47eec99ea21e9eb11b17af5244de514ff"


@pytest.mark.parametrize(
    ("spec", "change", "told"),
    [
        (SPEC, {"patch_score": None}, "0 scores of patches, expected 16"),
        (SPEC, {"patch_score": np.zeros(15, np.float16)}, "15 scores of patches, expected 16"),
        (SPEC, {"patch_score": np.full(16, np.nan, np.float16)}, "a score of a patch is not a finite number"),
        (SPEC, {"patch_score": np.full(16, np.inf, np.float16)}, "a score of a patch is not a finite number"),
        (SPEC, {"patch_entropy": None}, "scores of its patches without their entropies"),
        (TINY, {}, "scores of its patches, expected none"),
    ],
)
def test_what_is_none_is_refused(spec: TokenSpec, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^row 'image-000000': {told}$"):
        check_record(replace(scored(1)[0], **change), spec)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda row: row["patch_score"].__setitem__(3, float("nan")),
            "a score of a patch is not a finite number",
        ),
        (lambda row: row.update(patch_entropy=None), "scores of its patches without their entropies"),
    ],
)
def test_what_is_read_is_held_against_the_same_rules(
    spoil: Callable[[dict[str, Any]], Any], told: str
) -> None:
    table = to_table(scored(3), token_schema(SPEC))
    check_table(table, SPEC)
    rows = table.to_pylist()
    spoil(rows[1])
    with pytest.raises(ValueError, match=f"^row 'image-000001': {told}$"):
        check_table(pa.Table.from_pylist(rows, schema=table.schema), SPEC)


def test_a_file_without_the_column_is_not_of_such_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, scored(3))
    metadata = {
        name: value for name, value in (pq.read_metadata(path).metadata or {}).items() if b"tatok" in name
    }
    table = pq.read_table(path).drop_columns(["patch_score"])
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
    with pytest.raises(CorruptShard, match="15 columns, expected 16") as caught:
        verify_shard_file(path)
    assert caught.value.damage == Damage.SCHEMA
