"""Damage of every kind, done to real files, and the question whether it is seen."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.checking.check import (
    CorruptShard,
    Damage,
    count_reasons,
    read_checked_quarantine,
    verify_shard_file,
    verify_written,
)
from tatok_pipe.tokens.format import ROW_GROUP_ROWS, ShardSource, ShardWriter, write_quarantine
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
SOURCE = ShardSource("s3://bucket/a.tar", 1000, "e")
BAD = [
    Quarantined("bad", "decode", "NotAnImage", "no", 10),
    Quarantined("worse", "decode", "Truncated", "", 0),
]


def write(path: Path, spec: TokenSpec, records: Sequence[TokenRecord]) -> ShardWriter:
    with ShardWriter(path, spec, SOURCE) as writer:
        writer.append(records)
        writer.add_quarantined(BAD)
    return writer


def read_with_footer(path: Path) -> pa.Table:
    """The rows, with what our footer says as metadata of the schema: it goes back into a footer when written."""
    footer = pq.read_metadata(path).metadata
    ours = {name: value for name, value in footer.items() if name.startswith(b"tatok.")}
    return pq.read_table(path).replace_schema_metadata(ours)


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """The same shard with its rows changed, as whole and as well-formed a Parquet file as before."""
    table = read_with_footer(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, write_page_checksum=True)


def refuse(source: Path, spec: TokenSpec, **expected: Any) -> CorruptShard:
    with pytest.raises(CorruptShard) as caught:
        verify_shard_file(source, spec=spec, **expected)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.fixture
def shard(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> Path:
    """50 rows, two quarantined."""
    write(tmp_path / "a.parquet", token_spec, make_token_records(token_spec, 50))
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("count", [0, 1, ROW_GROUP_ROWS + 5])
def test_what_was_written_is_found_whole(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords, count: int
) -> None:
    records = make_token_records(token_spec, count)
    writer = write(tmp_path / "a.parquet", token_spec, records)
    found = verify_written(writer)
    assert found.metadata.num_rows == count
    assert found.metadata.source == SOURCE
    assert found.keys == [record.key for record in records]
    assert found.content_digest == writer.content_digest
    content = pa.py_buffer((tmp_path / "a.parquet").read_bytes())
    again = verify_shard_file(content, spec=token_spec, num_rows=count)
    assert again.content_digest == found.content_digest


def test_a_flipped_bit_anywhere_in_the_pages_is_seen(shard: Path, token_spec: TokenSpec) -> None:
    data = shard.read_bytes()
    digest = verify_shard_file(shard, spec=token_spec).content_digest
    end_of_pages = len(data) - 8 - pq.read_metadata(shard).serialized_size
    dice = random.Random(0)
    num_seen = 0
    for _ in range(300):
        place = dice.randrange(4, end_of_pages)
        flipped = bytearray(data)
        flipped[place] ^= 1 << dice.randrange(8)
        try:
            # The few bits that matter to nobody are in page headers.
            assert verify_shard_file(pa.py_buffer(bytes(flipped))).content_digest == digest
        except CorruptShard as error:
            assert error.damage == Damage.UNREADABLE
            num_seen += 1
    assert num_seen > 280


def test_damage_in_the_footer_never_ends_in_another_error(shard: Path, token_spec: TokenSpec) -> None:
    data = shard.read_bytes()
    start_of_footer = len(data) - 8 - pq.read_metadata(shard).serialized_size
    dice = random.Random(1)
    kinds = set()
    for _ in range(500):
        flipped = bytearray(data)
        flipped[dice.randrange(start_of_footer, len(data))] ^= 1 << dice.randrange(8)
        try:
            verify_shard_file(pa.py_buffer(bytes(flipped)), spec=token_spec)
        except CorruptShard as error:
            kinds.add(error.damage)
    assert kinds >= {Damage.UNREADABLE, Damage.STATISTICS}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file(shard: Path, token_spec: TokenSpec, share: float) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: int(share * len(data))])
    assert refuse(shard, token_spec).damage == Damage.UNREADABLE


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_shard_file(tmp_path / "nothing.parquet")


def test_parquet_of_somebody_else(tmp_path: Path, token_spec: TokenSpec) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    error = refuse(tmp_path / "x.parquet", token_spec)
    assert error.damage == Damage.UNREADABLE and "token format version missing" in str(error)


def test_other_settings(shard: Path, token_spec: TokenSpec) -> None:
    other = dataclasses.replace(token_spec, tokenizer_fingerprint="sha256:other")
    error = refuse(shard, other)
    assert error.damage == Damage.SPEC and 'not "sha256:other"' in str(error)
    assert verify_shard_file(shard).metadata.spec == token_spec  # no spec, no comparison


def test_another_number_of_rows(shard: Path, token_spec: TokenSpec) -> None:
    error = refuse(shard, token_spec, num_rows=49)
    assert error.damage == Damage.CONTENT and str(error) == "50 rows, expected 49"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["meta"]), "column 4 is `width: int32 not null`, expected `meta: string`"),
        (lambda table: table.drop_columns(["patch_entropy"]), "14 columns, expected 15"),
        (lambda table: table.append_column("more", pa.array([1] * 50)), "16 columns, expected 15"),
        (
            lambda table: table.set_column(1, pa.field("label", pa.int64()), table["label"].cast(pa.int64())),
            "column 2 is `label: int64`, expected `label: int32`",
        ),
        (
            lambda table: table.set_column(0, pa.field("key", pa.string()), table["key"]),
            "column 1 is `key: string`, expected `key: string not null`",
        ),
    ],
)  # fmt: skip
def test_other_columns(shard: Path, token_spec: TokenSpec, change: Callable[..., Any], message: str) -> None:
    table = read_with_footer(shard)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), shard)
    error = refuse(shard, token_spec)
    assert error.damage == Damage.SCHEMA
    assert message in str(error)


def break_positions(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if len(row["patch_positions"]) > 1)
    row["patch_positions"].reverse()


def exchange_codes(rows: list[dict[str, Any]]) -> None:
    """Valid rows, but not those that the footer counts."""
    row = next(row for row in rows if row["patch_codes"])
    row["patch_codes"][0] = (row["patch_codes"][0] + 1) % 70_000


@pytest.mark.parametrize(
    ("change", "damage", "message"),
    [
        (break_positions, Damage.ROWS, "patch positions are not strictly increasing"),
        (lambda rows: rows[7].update(num_tokens=1), Damage.ROWS, "row 'image-000007': num_tokens=1"),
        (lambda rows: rows[7].update(entropy_total=float("nan")), Damage.ROWS, "row 'image-000007': entropy_tot"),
        (lambda rows: rows[7].update(key="image-000008", crop=rows[8]["crop"]), Damage.KEYS,
            "key 'image-000008', crop 0, comes 2 times"),
        (exchange_codes, Damage.STATISTICS, "patch_code_counts["),
        (lambda rows: rows.pop(), Damage.STATISTICS, "num_images: 49, not 50"),
        (lambda rows: rows.append(rows[3] | {"key": "more"}), Damage.STATISTICS, "num_images: 51, not 50"),
    ],
)  # fmt: skip
def test_rows_that_are_wrong(
    shard: Path, token_spec: TokenSpec, change: Callable[..., Any], damage: Damage, message: str
) -> None:
    rewrite(shard, lambda rows: None)
    verify_shard_file(shard, spec=token_spec)  # rewriting alone is no damage
    rewrite(shard, change)
    error = refuse(shard, token_spec)
    assert error.damage == damage
    assert message in str(error)


def test_one_key_may_have_several_crops(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    rows = [
        dataclasses.replace(record, key="same", crop=crop)
        for crop, record in enumerate(make_token_records(token_spec, 5))
    ]
    assert verify_written(write(tmp_path / "a.parquet", token_spec, rows)).keys == ["same"] * 5


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        ([0, 1, 2] * 4, None),
        (
            [0, 1, 2] * 3 + [0, 2, 1],
            "rows 9 to 11 begin with key 'k3' and have crops 0, 2, 1, expected 0 to 2",
        ),
        ([0, 1, 2] * 3 + [0, 1], "rows 9 to 10 begin with key 'k3' and have crops 0, 1, expected 0 to 2"),
        (
            [0, 1, 3] + [0, 1, 2] * 3,
            "rows 0 to 2 begin with key 'k0' and have crops 0, 1, 3, expected 0 to 2",
        ),
    ],
)
def test_all_crops_of_an_image_stand_together(
    tmp_path: Path,
    token_spec: TokenSpec,
    make_token_records: MakeRecords,
    crops: list[int],
    message: str | None,
) -> None:
    spec = dataclasses.replace(token_spec, encoding={"crops": {"kind": "random", "per_image": 3}})
    assert (spec.crops_per_image, spec.row_name) == (3, "crop")
    assert (token_spec.crops_per_image, token_spec.row_name) == (1, "image")
    records = make_token_records(spec, len(crops))
    rows = [
        dataclasses.replace(record, key=f"k{row // 3}", crop=crop)
        for row, (record, crop) in enumerate(zip(records, crops, strict=True))
    ]
    path = write(tmp_path / "a.parquet", spec, rows).path
    if message is None:
        verify_shard_file(path, spec=spec)
        mixed = [rows[0], rows[1], dataclasses.replace(rows[2], key="k1"), *rows[3:5], rows[2]]
        path = write(tmp_path / "b.parquet", spec, mixed).path
        message = "rows 0 to 2 begin with key 'k0' and have crops 0, 1, 2, expected 0 to 2 of one image"
    with pytest.raises(CorruptShard, match=message) as caught:
        verify_shard_file(path, spec=spec)
    assert caught.value.damage == Damage.ROWS


def test_a_row_that_changed_between_memory_and_file(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    """An array that its owner uses again before the row group is full: no rule of the format sees that."""
    records = make_token_records(token_spec, 20)
    with ShardWriter(tmp_path / "a.parquet", token_spec, SOURCE) as writer:
        writer.append(records)
        records[4].global_codes[0] ^= 1
    for check in (lambda: verify_shard_file(writer.path, spec=token_spec), lambda: verify_written(writer)):
        with pytest.raises(CorruptShard, match="its rows have digest") as caught:
            check()
        assert caught.value.damage == Damage.CONTENT


def test_a_text_that_changed_in_the_file(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    """Captions are in no statistics."""
    write(tmp_path / "a.parquet", token_spec, make_token_records(token_spec, 20))
    rewrite(tmp_path / "a.parquet", lambda rows: rows[3].update(caption="another"))
    with pytest.raises(CorruptShard, match="its rows have digest"):
        verify_shard_file(tmp_path / "a.parquet", spec=token_spec)


def test_a_file_of_another_writer(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, 20)
    writer = write(tmp_path / "a.parquet", token_spec, records)
    for source, expected in ((dataclasses.replace(SOURCE, etag="f"), "its source is"), (SOURCE, "num_quara")):
        with ShardWriter(tmp_path / "a.parquet", token_spec, source) as other:
            other.append(records)
        with pytest.raises(CorruptShard, match=expected):
            verify_written(writer)


def test_the_error_survives_a_pickle(shard: Path, token_spec: TokenSpec) -> None:
    error = refuse(shard, token_spec, num_rows=1)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.damage) == (str(error), Damage.CONTENT)


def test_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    write_quarantine(path, BAD)
    assert read_checked_quarantine(path) == BAD
    assert count_reasons([*BAD, BAD[0]]) == {"NotAnImage": 2, "Truncated": 1}
    data = path.read_bytes()
    place = data.index(b"NotAnImage") if b"NotAnImage" in data else 40
    for broken in (data[:-9], b"", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
        with pytest.raises(CorruptShard) as caught:
            read_checked_quarantine(pa.py_buffer(broken))
        assert caught.value.damage == Damage.UNREADABLE
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(CorruptShard) as caught:
        read_checked_quarantine(path)
    assert caught.value.damage == Damage.SCHEMA


def test_pages_without_checksum_would_not_do(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    """The reason for page checksums: without, a flipped bit of an uncompressed page reads as another value."""
    write(tmp_path / "a.parquet", token_spec, make_token_records(token_spec, 20))
    table = read_with_footer(tmp_path / "a.parquet")
    for with_checksum in (False, True):
        path = tmp_path / "plain.parquet"
        pq.write_table(
            table, path, compression="none", use_dictionary=False, write_page_checksum=with_checksum
        )
        data = bytearray(path.read_bytes())
        data[data.index(np.float32(table["entropy_total"][3].as_py()).tobytes())] ^= 1
        path.write_bytes(data)
        expected = Damage.UNREADABLE if with_checksum else Damage.STATISTICS
        assert refuse(path, token_spec).damage == expected
