"""Parquet shards: rows as other readers see them, refusals explained, and nothing that a file says is believed."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.images.fields import MAX_KEY_CHARACTERS
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.parquet import samples as parquet_module
from tatok_pipe.images.parquet.samples import read_parquet
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.records import ImageSample, Quarantined

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Read = Callable[..., list[ImageSample | Quarantined]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read(table or bytes, limits and options)`: the samples of the file."""

    def read(content: pa.Table | bytes, *, limits: Any = None, **options: Any):
        path = tmp_path / "x.parquet"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path, **options)
        file: Any = storage.open_random_access(str(path), info=storage.file_info(str(path)))
        with file:
            accepted: dict[str, Any] = {"max_page_bytes": 1 << 20} | (limits or {})
            chosen = ShardLimits(**accepted)
            return list(read_parquet(file, shard="x.parquet", limits=chosen))

    return read


def images(*values: bytes | None) -> pa.Array:
    return pa.array([None if v is None else {"bytes": v, "path": "p.jpg"} for v in values], IMAGE)


def refusals(samples: list[ImageSample | Quarantined]) -> list[str | None]:
    return [sample.error if isinstance(sample, Quarantined) else None for sample in samples]


def test_a_whole_row(read: Read):
    table = pa.table(
        {
            "image": images(b"one", b"two"), "label": [7, None], "text": ["Käse", None],
            "json": ['{"x": 1}', None], "__key__": ["d/a", None], "other": [b"x", b"y"],
        }
    )  # fmt: skip
    assert read(table) == [ImageSample("d/a", b"one", 7, "Käse", '{"x": 1}'), ImageSample("00000001", b"two")]


@pytest.mark.parametrize("options", [
    {"row_group_size": 7}, {"compression": "none"}, {"compression": "zstd"}, {"compression": "gzip"},
    {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 100, "write_batch_size": 3},
    {"write_page_checksum": True}, {"write_page_index": True}, {"version": "1.0"},
    {"store_schema": False},
])  # fmt: skip
def test_every_way_of_writing_gives_the_same_rows(read: Read, options: dict[str, Any]):
    values = [random.Random(i).randbytes(37 * i % 500) for i in range(200)]
    table = pa.table({"image": images(*values), "label": pa.array(range(200), pa.uint8())})
    expected = [ImageSample(f"{i:08d}", value, i) for i, value in enumerate(values)]
    assert read(table, **options) == expected


@pytest.mark.parametrize("limit", [1, 10_000])
def test_batches_of_any_size(read: Read, monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(parquet_module, "_MAX_BATCH_BYTES", limit)
    values = [bytes([i]) * 100 for i in range(200)]
    samples = read(pa.table({"image": images(*values)}))
    assert [sample.image for sample in samples if isinstance(sample, ImageSample)] == values


@pytest.mark.parametrize("kind", [
    pa.binary(), pa.large_binary(), pa.binary(4), pa.dictionary(pa.int32(), pa.binary()),
    pa.struct([("bytes", pa.large_binary())]), pa.struct([("path", pa.large_string()), ("bytes", pa.binary())]),
])  # fmt: skip
def test_types_of_the_image(read: Read, kind: pa.DataType):
    values = [b"abcd", b"efgh"]
    array = pa.array([{"bytes": v} for v in values] if pa.types.is_struct(kind) else values, kind)
    assert [s.image for s in read(pa.table({"image": array})) if isinstance(s, ImageSample)] == values


def test_types_of_what_belongs_to_it(read: Read):
    text = pa.dictionary(pa.int8(), pa.string())
    table = pa.table(
        {
            "img": images(b"1"), "cls": pa.array([2], pa.int16()), "caption": pa.array(["c"], text),
            "meta": pa.array(["[]"], pa.large_string()), "id": pa.array([0], pa.int64()),
        }
    )  # fmt: skip
    assert read(table) == [ImageSample("0", b"1", 2, "c", "[]")]
    others = {"label": pa.array([[1]]), "caption": pa.array([["c"]]), "json": pa.array([{"a": 1}])}
    expected = ImageSample("00000000", b"1", 1, "c", '{"a": 1}')
    assert read(pa.table({"image": images(b"1")} | others)) == [expected]


@pytest.mark.parametrize(("columns", "chosen"), [
    (["other", "image"], "image"), (["png", "jpg", "zzz"], "jpg"), (["IMAGE", "jpg"], "IMAGE"),
    (["anything"], "anything"),
])  # fmt: skip
def test_which_column_is_the_image(read: Read, columns: list[str], chosen: str):
    (sample,) = read(pa.table({name: images(name.encode()) for name in columns}))
    assert isinstance(sample, ImageSample) and sample.image == chosen.encode()


def test_refused_rows(read: Read):
    key = ["a", "b", "a", "d", "e", "f", "g", "k" * (MAX_KEY_CHARACTERS + 1)]
    table = pa.table({
        "image": images(b"1", None, b"1", b"12345", b"1", b"1", b"1", b"1"),
        "label": pa.array([1, 1, 1, 1, 2**31, -(2**31), 1, 1], pa.int64()),
        "caption": pa.array([b"x"] * 6 + [b"caf\xe9", b"x"]).cast(pa.string(), safe=False), "key": key,
    })  # fmt: skip
    samples = read(table, limits={"max_member_bytes": 4})
    assert refusals(samples) == [
        None, "NoImage", "DuplicateKey", "TooManyBytes", "BadLabel", None, "BadCaption", "LongKey",
    ]  # fmt: skip
    assert [s.num_bytes for s in samples if isinstance(s, Quarantined)] == [1, 2, 6, 2, 5, 2]
    assert [sample.key for sample in samples[:7]] == key[:7] and len(samples[7].key) < 300


def test_images_that_are_not_embedded(read: Read):
    array = pa.array([{"bytes": None, "path": "/data/a.jpg"}, {"bytes": None, "path": None}], IMAGE)
    embed, null = read(pa.table({"image": array}))
    assert isinstance(embed, Quarantined) and isinstance(null, Quarantined)
    assert embed.error == null.error == "NoImage"
    assert "only the path '/data/a.jpg'; embed the images" in embed.message
    assert null.message == "the image is null"


def test_keys_that_are_not_utf_8(read: Read):
    table = pa.table({"image": images(b"1"), "key": pa.array([b"\xff/a"]).cast(pa.string(), safe=False)})
    assert read(table) == [ImageSample("\\xff/a", b"1")]


def test_written_by_hugging_face_datasets(read: Read, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(5)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcde"))}
    )
    data = datasets.Dataset.from_dict({"image": pictures, "label": list(range(5))}, features=features)
    data.to_parquet(tmp_path / "hf.parquet")
    samples = read((tmp_path / "hf.parquet").read_bytes())
    assert [sample.label for sample in samples if isinstance(sample, ImageSample)] == list(range(5))
    for i, sample in enumerate(samples):
        assert isinstance(sample, ImageSample)
        assert Image.open(io.BytesIO(sample.image)).getpixel((0, 0)) == (i, 0, 0)


def written(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


TABLE = pa.table({"image": images(*[random.Random(i).randbytes(500) for i in range(40)]), "label": range(40)})


@pytest.mark.parametrize(("content", "message"), [
    (b"", "the file has 0 bytes"),
    (b"short", "not a Parquet file: it begins with b'short'"),
    (b"<html>404</html>" * 9, "not a Parquet file"),
    (written(TABLE)[:-100], "cut off: the footer"),
    (written(TABLE)[:4] + bytes(20) + (1 << 31).to_bytes(4, "little") + b"PAR1", "footer of 2147483648 bytes"),
    (written(TABLE)[:4] + bytes(200) + (100).to_bytes(4, "little") + b"PAR1", "damaged Parquet"),
    (written(pa.table({"a": [1], "b": ["x"]})), r"among 2 columns \(a: int64, b: string\).*expected struct<bytes"),
    (written(pa.table({"a": images(b"1"), "b": images(b"1")})), "no column of images among 2 columns"),
    (written(pa.table({"image": ["a URL"]})), r"no column of images among 1 columns \(image: string\)"),
])  # fmt: skip
def test_what_is_no_shard(read: Read, content: bytes, message: str):
    with pytest.raises(ShardError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value) and caught.value.num_samples == 0


def test_a_token_shard_is_no_image_shard(
    read: Read, token_spec: Any, make_token_records: Any, tmp_path: Path
):
    from tatok_pipe.tokens.format import ShardSource, ShardWriter

    with ShardWriter(tmp_path / "t.parquet", token_spec, ShardSource("a.tar", 10)) as writer:
        writer.append(make_token_records(token_spec, 3))
    with pytest.raises(ShardError, match="a token shard, expected images.*made from$"):
        read((tmp_path / "t.parquet").read_bytes())


def test_limits(read: Read):
    with pytest.raises(ShardError, match="40 rows, more than max_members=39.*raise max_members"):
        read(TABLE, limits={"max_members": 39})
    with pytest.raises(ShardError, match="decompressed, more than max_shard_bytes=20000"):
        read(TABLE, limits={"max_shard_bytes": 20_000})
    assert len(read(TABLE, limits={"max_members": 40, "max_shard_bytes": 25_000})) == 40


def test_a_page_bomb_is_refused_unopened(read: Read):
    bomb = pa.table({"image": images(bytes(64 << 20))})
    with pytest.raises(
        ShardError,
        match=r"byte 4: a page of 6710\d+ bytes \(\d{4} stored\), more than max_page_bytes=1048576.*write_b",
    ):
        read(bomb, compression="zstd", use_dictionary=False)
    (sample,) = read(bomb, compression="zstd", limits={"max_page_bytes": 65 << 20})
    assert isinstance(sample, ImageSample) and len(sample.image) == 64 << 20


def test_errors_of_the_storage_are_no_damage(tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.write_bytes(written(TABLE, row_group_size=10))
    failing: Any = storage.open_random_access(str(path), info=storage.file_info(str(path)))
    calm = failing.read
    failing.read = lambda size=-1: (
        calm(size) if failing.tell() != 4 else (_ for _ in ()).throw(OSError("gone"))
    )
    with failing, pytest.raises(OSError, match="^gone$"):
        list(read_parquet(failing, shard="x"))


def test_a_file_that_changes_is_noticed(tmp_path: Path):
    path = tmp_path / "x.parquet"
    path.write_bytes(written(TABLE))
    file: Any = storage.open_random_access(str(path), info=storage.file_info(str(path)))
    with file:
        samples = read_parquet(file, shard="x")
        next(samples)
        with path.open("ab") as end:
            end.write(b"more")
        with pytest.raises(OSError, match="changed"):
            list(samples)


def test_damage_anywhere_is_rows_or_one_line(read: Read):
    """Flipped bytes and cuts: never a crash, never another exception, and with checksums never another image."""
    whole = written(TABLE, compression="zstd", write_page_checksum=True, row_group_size=15)
    expected = {sample.key: sample for sample in read(whole)}
    assert len(expected) == 40
    randoms = random.Random(0)
    num_refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(randoms.choice([1, 3])):
            damaged[randoms.randrange(len(damaged))] ^= 1 << randoms.randrange(8)
        try:
            for sample in read(bytes(damaged)):
                if isinstance(sample, ImageSample) and sample.key in expected:
                    known = expected[sample.key]
                    assert isinstance(known, ImageSample) and sample.image == known.image
        except ShardError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > 100


def test_json_is_kept_as_text(read: Read):
    text = json.dumps({"ü": [1, 2]}, ensure_ascii=False, indent=1)
    (sample,) = read(pa.table({"image": images(b"1"), "json": [text]}))
    assert isinstance(sample, ImageSample) and sample.meta == text
