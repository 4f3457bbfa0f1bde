from __future__ import annotations

import dataclasses
import datetime
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens.format import (
    ROW_GROUP_ROWS,
    ShardSource,
    ShardWriter,
    empty_statistics,
    read_quarantine,
    read_records,
    read_shard_metadata,
    to_records,
    token_shard_name,
    write_quarantine,
)
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
SOURCE = ShardSource(url="s3://bucket/train/000007.tar", size_bytes=98765, etag="abc-2")


def write(path: Path, spec: TokenSpec, batches: Sequence[Sequence[TokenRecord]]) -> bytes:
    with ShardWriter(path, spec, SOURCE) as writer:
        for batch in batches:
            writer.append(batch)
    return path.read_bytes()


def assert_equal(found: TokenRecord, expected: TokenRecord) -> None:
    for field in dataclasses.fields(TokenRecord):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(right, np.ndarray):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        elif isinstance(right, float):
            assert left == pytest.approx(right, rel=1e-6)
        else:
            assert left == right


def test_rows_come_back(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    records = make_token_records(token_spec, 100)
    assert any(record.patch_entropy is None for record in records)
    assert any(record.patch_entropy is not None for record in records)
    write(tmp_path / "x.parquet", token_spec, [records])
    found = read_records(tmp_path / "x.parquet")
    assert len(found) == 100
    for left, right in zip(found, records, strict=True):
        assert_equal(left, right)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column("num_tokens").to_pylist() == [record.num_tokens for record in records]
    part = to_records(table.slice(17, 5))
    for left, right in zip(part, records[17:22], strict=True):
        assert_equal(left, right)


def test_rows_without_globals(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    spec = dataclasses.replace(token_spec, num_globals=0)
    records = make_token_records(spec, 20)
    write(tmp_path / "x.parquet", spec, [records])
    for left, right in zip(read_records(tmp_path / "x.parquet"), records, strict=True):
        assert_equal(left, right)
    lengths = "select len(global_codes), len(patch_codes) = num_tokens from read_parquet(?)"
    assert set(duckdb.execute(lengths, [str(tmp_path / "x.parquet")]).fetchall()) == {(0, True)}


def test_an_empty_shard(tmp_path: Path, token_spec: TokenSpec) -> None:
    write(tmp_path / "x.parquet", token_spec, [])
    assert read_records(tmp_path / "x.parquet") == []
    assert read_shard_metadata(str(tmp_path / "x.parquet")).num_rows == 0


def test_bytes_do_not_depend_on_the_batches(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, ROW_GROUP_ROWS + 77)
    expected = write(tmp_path / "whole.parquet", token_spec, [records])
    for step in (1, 100, ROW_GROUP_ROWS, ROW_GROUP_ROWS + 1):
        batches = [records[start : start + step] for start in range(0, len(records), step)]
        assert write(tmp_path / f"{step}.parquet", token_spec, batches) == expected
    rows = pq.read_metadata(tmp_path / "whole.parquet")
    assert [rows.row_group(n).num_rows for n in range(rows.num_row_groups)] == [ROW_GROUP_ROWS, 77]
    other = write(tmp_path / "other.parquet", token_spec, [records[:-1]])
    assert other != expected
    assert str(datetime.date.today().year).encode() + b"-" not in expected


@pytest.mark.parametrize("has_scores", [False, True])
def test_rows_as_they_were_read_give_the_bytes_of_records(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords, has_scores: bool
) -> None:
    """However the tables are cut, and after rows were taken out of them."""
    records = make_token_records(token_spec, ROW_GROUP_ROWS + 500)
    if has_scores:
        token_spec = dataclasses.replace(token_spec, encoding={"scores": True})
        scores = np.linspace(0, 1, token_spec.num_patches).astype(np.float16)
        records = [
            dataclasses.replace(record, patch_score=scores)
            for record in records
            if record.patch_entropy is not None
        ]
    write(tmp_path / "x.parquet", token_spec, [records])
    table = pq.read_table(tmp_path / "x.parquet")
    stays = np.arange(len(records)) % 7 != 3
    left = [record for record, each in zip(records, stays, strict=True) if each]
    expected = write(tmp_path / "left.parquet", token_spec, [left])
    for step in (100, ROW_GROUP_ROWS, len(records)):
        with ShardWriter(tmp_path / "y.parquet", token_spec, SOURCE) as writer:
            for start in range(0, len(records), step):
                part = table.slice(start, step)
                writer.append_table(part.filter(pa.array(stays[start : start + step])))
        assert Path(tmp_path / "y.parquet").read_bytes() == expected
    place = table.schema.get_field_index("num_tokens")
    wrong = pa.array([1] * table.num_rows, pa.int32())
    with (
        pytest.raises(ValueError, match=f"row '{records[0].key}': num_tokens=1, expected"),
        ShardWriter(tmp_path / "y.parquet", token_spec, SOURCE) as writer,
    ):
        writer.append_table(table.set_column(place, table.schema.field(place), wrong))


def test_metadata_from_the_footer(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_token_records(token_spec, 3000)
    path = tmp_path / "x.parquet"
    with ShardWriter(path, token_spec, SOURCE) as writer:
        writer.append(records)
        writer.add_quarantined([Quarantined("bad", "decode", "NotAnImage", "no", 10)])
    for first_guess in (token_format._FOOTER_BYTES, 64):
        monkeypatch.setattr(token_format, "_FOOTER_BYTES", first_guess)
        found = read_shard_metadata(str(path))
        assert found.spec == token_spec
        assert found.source == SOURCE
        assert found.num_rows == 3000
        assert found.statistics.num_quarantined == 1
        assert found.statistics.bytes_in == SOURCE.size_bytes
    again = empty_statistics(token_spec)
    again.update(read_records(path))
    again.bytes_in = SOURCE.size_bytes
    again.add_quarantined([Quarantined("bad", "decode", "NotAnImage", "no", 10)])
    assert again.to_json() == found.statistics.to_json()


def test_every_promised_key_is_plain_json_in_the_footer(tmp_path: Path, token_spec: TokenSpec) -> None:
    write(tmp_path / "x.parquet", token_spec, [])
    metadata = pq.read_metadata(tmp_path / "x.parquet").metadata
    assert metadata[b"tatok.format_version"] == b"3"
    assert metadata[b"tatok.tokenizer_fingerprint"] == f'"{token_spec.tokenizer_fingerprint}"'.encode()
    for name, value in (
        ("num_globals", 3),
        ("num_patches", 16),
        ("global_vocab", 512),
        ("patch_vocab", 70_000),
    ):
        assert metadata[f"tatok.{name}".encode()] == str(value).encode()
    for name, value in (("image_size", 32), ("patch_size", 8)):
        assert metadata[f"tatok.{name}".encode()] == str(value).encode()
    assert metadata[b"tatok.dtf"] == b'{"min_patches":1,"rule":"threshold","score":"entropy","value":0.25}'
    assert (
        metadata[b"tatok.source"]
        == b'{"etag":"abc-2","sha256":"","size_bytes":98765,"url":"s3://bucket/train/000007.tar"}'
    )
    assert b"tatok.statistics" in metadata


def test_files_that_are_no_token_shard(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no Parquet file")
    (tmp_path / "empty").write_bytes(b"")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name, message in (
        ("text", "not a Parquet file"),
        ("empty", "not a Parquet file"),
        ("other.parquet", "missing"),
    ):
        with pytest.raises(UserError, match=message):
            read_shard_metadata(str(tmp_path / name))


def test_a_footer_that_is_not_what_it_should_be(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    write(tmp_path / "x.parquet", token_spec, [make_token_records(token_spec, 3)])
    footer = pq.read_metadata(tmp_path / "x.parquet").metadata
    ours = {name: value for name, value in footer.items() if name.startswith(b"tatok.")}
    table = pq.read_table(tmp_path / "x.parquet")
    for changes, message in (
        ({b"tatok.num_patches": None}, "KeyError: 'num_patches'"),
        ({b"tatok.source": b'{"url": "x"}'}, "TypeError: .*size_bytes"),
        ({b"tatok.dtf": b"{"}, "JSONDecodeError"),
        ({b"tatok.num_patches": b"15"}, "ValueError: num_patches=15"),
        ({b"tatok.statistics": b"{}"}, "KeyError"),
    ):
        values = {name: value for name, value in (ours | changes).items() if value is not None}
        pq.write_table(table.replace_schema_metadata(values), tmp_path / "y.parquet")
        with pytest.raises(UserError, match=rf"its footer is not what format 3 asks for \({message}"):
            read_shard_metadata(str(tmp_path / "y.parquet"))


def test_a_newer_format_version(
    tmp_path: Path, token_spec: TokenSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(token_format, "FORMAT_VERSION", 4)
        write(tmp_path / "x.parquet", token_spec, [])
    with pytest.raises(UserError, match="version 4, this program reads version 3"):
        read_shard_metadata(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_codes": np.array([1, 2], np.uint16)}, "2 global codes, expected 3"),
        ({"global_codes": np.array([1, 2, 512], np.uint16)}, "global codes from 1 to 512, expected 0 to 511"),
        ({"patch_codes": np.array([1, 70_000], np.uint32)}, "patch codes from 1 to 70000"),
        ({"patch_codes": np.array([1, -1])}, "patch codes from -1 to 1"),
        ({"patch_codes": np.array([1])}, "1 patch codes but 2 positions"),
        ({"patch_positions": np.array([3, 3], np.uint16)}, "not strictly increasing"),
        ({"patch_positions": np.array([4, 3], np.uint16)}, "not strictly increasing"),
        ({"patch_positions": np.array([3, 16], np.uint16)}, "patch positions from 3 to 16"),
        ({"entropy_total": float("nan")}, "entropy_total=nan"),
        ({"entropy_dropped": -1.0}, "entropy_dropped=-1.0"),
        ({"entropy_dropped": 1e3}, "entropy_dropped=1000.0, expected at most entropy_total="),
        ({"mutual_information": float("inf")}, "mutual_information=inf"),
        ({"patch_entropy": np.zeros(15, np.float32)}, "15 patch entropies, expected 16"),
    ],
)
def test_rows_that_break_the_format(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords, changes: dict, message: str
) -> None:
    (record,) = make_token_records(token_spec, 1)
    good = dataclasses.replace(
        record, patch_codes=np.array([5, 6], np.uint32), patch_positions=np.array([0, 15], np.uint16)
    )
    with (
        pytest.raises(ValueError, match=f"'image-000000'.*{message}"),
        ShardWriter(tmp_path / "x.parquet", token_spec, SOURCE) as writer,
    ):
        writer.append([good])
        writer.append([dataclasses.replace(good, **changes)])
    assert not (tmp_path / "x.parquet").exists()  # half a shard looks complete to a Parquet reader


def test_stored_dropped_entropy_stays_within_the_budget(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    budgets = [value for value in np.linspace(0.1, 20, 200) if float(np.float32(value)) > value]
    assert len(budgets) > 50
    records = make_token_records(token_spec, len(budgets))
    records = [
        dataclasses.replace(r, entropy_dropped=float(b), entropy_total=50.0)
        for r, b in zip(records, budgets, strict=True)
    ]
    write(tmp_path / "x.parquet", token_spec, [records])
    stored = pq.read_table(tmp_path / "x.parquet").column("entropy_dropped").to_pylist()
    assert all(value <= budget for value, budget in zip(stored, budgets, strict=True))
    assert stored == pytest.approx(budgets, rel=1e-6)


def test_other_programs_read_it(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, 2500)
    path = tmp_path / "x.parquet"
    write(path, token_spec, [records])
    expected = (2500, sum(r.num_tokens for r in records), min(len(r.patch_codes) for r in records))
    query = f"SELECT count(*), sum(num_tokens), min(len(patch_codes)) FROM '{path}'"
    assert duckdb.connect().execute(query).fetchall() == [expected]
    query = f"SELECT global_codes, patch_positions FROM '{path}' WHERE key = 'image-000042'"
    (row,) = duckdb.connect().execute(query).fetchall()
    assert list(row[0]) == records[42].global_codes.tolist()
    assert list(row[1]) == records[42].patch_positions.tolist()

    by_polars = polars.read_parquet(path)
    assert (
        by_polars.height,
        by_polars["num_tokens"].sum(),
        by_polars["patch_codes"].list.len().min(),
    ) == expected

    by_pandas = pandas.read_parquet(path)
    assert (
        len(by_pandas),
        by_pandas["num_tokens"].sum(),
        by_pandas["patch_codes"].map(len).min(),
    ) == expected

    by_datasets = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert isinstance(by_datasets, datasets.Dataset)
    lengths = [len(codes) for codes in by_datasets["patch_codes"]]
    assert (by_datasets.num_rows, sum(by_datasets["num_tokens"]), min(lengths)) == expected
    assert by_datasets[42]["patch_codes"] == records[42].patch_codes.tolist()


def test_quarantine_round_trip(tmp_path: Path) -> None:
    rows = [
        Quarantined("a", "decode", "NotAnImage", "cannot identify image file", 0),
        Quarantined("b/ü", "shard", "TruncatedTar", "unexpected end", 1 << 40),
    ]
    write_quarantine(tmp_path / "a.parquet", rows)
    write_quarantine(tmp_path / "b.parquet", rows)
    assert read_quarantine(str(tmp_path / "a.parquet")) == rows
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_shard_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # sha256("s3://bucket/train/000007.tar"), first 8 hex digits, from `printf %s ... | sha256sum`
    assert token_shard_name("s3://bucket/train/000007.tar") == "000007-32913995"
    assert token_shard_name("s3://bucket/val/000007.tar") != "000007-32913995"
    # A part: its number belongs to the name, also behind an extension; with its list or without.
    name = token_shard_name("s3://bucket/list.v2.jsonl#000012#/out/_input.parquet")
    assert name == token_shard_name("s3://bucket/list.v2.jsonl#000012") and name.startswith("list.v2-000012-")
    assert token_shard_name("s3://bucket/photos#000001").startswith("photos-000001-")
    monkeypatch.chdir(tmp_path)
    assert token_shard_name("x.tar") == token_shard_name(str(tmp_path / "x.tar"))


@pytest.mark.s3
def test_s3(s3_url: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    records = make_token_records(token_spec, 2500, seed=random.Random(3).randrange(9))
    write(tmp_path / "x.parquet", token_spec, [records])
    url = storage.join(s3_url, "x.parquet")
    storage.publish_file(tmp_path / "x.parquet", url, exclusive=True)
    assert read_shard_metadata(url).num_rows == 2500
    for left, right in zip(read_records(url), records, strict=True):
        assert_equal(left, right)
