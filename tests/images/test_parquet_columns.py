"""Labels, captions, keys and JSON of Parquet as people write them, by the writers that they use."""

from __future__ import annotations

import base64
import io
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet.samples import read_parquet
from tatok_pipe.images.shard_errors import ShardError, UnusableShard
from tatok_pipe.records import ImageSample, Quarantined
from tests.images.tars import pack

IMAGES = [b"\xff\xd8\xff" + bytes([i]) for i in range(3)]


def read(path: Path, ignore: list[str] | None = None) -> tuple[list[ImageSample | Quarantined], list[str]]:
    """The samples of a file, and what was told of it."""
    notices = Notices()
    file: Any = storage.open_random_access(str(path), info=storage.file_info(str(path)))
    with file:
        samples = list(
            read_parquet(file, shard="x.parquet", limits=ShardLimits(ignore=ignore or []), notices=notices)
        )
    return samples, [notice.text for notice in notices.all]


@pytest.fixture
def read_columns(tmp_path: Path):
    """`read_columns(name=array, ...)`: samples and notices of three images with these columns."""

    def read_columns(ignore: list[str] | None = None, **columns: Any):
        pq.write_table(pa.table({"image": IMAGES, **columns}), tmp_path / "x.parquet")
        return read(tmp_path / "x.parquet", ignore)

    return read_columns


def labels(samples: list[ImageSample | Quarantined]) -> list[Any]:
    return [sample.label if isinstance(sample, ImageSample) else sample.error for sample in samples]


LABELS: list[tuple[str, pa.Array]] = [
    *((str(kind), pa.array([0, None, 2], kind)) for kind in (
        pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(),
        pa.float64(), pa.decimal128(19, 0), pa.decimal256(50, 0),
    )),
    ("decimal of money", pa.array([Decimal("0.00"), None, Decimal("2.00")])),
    ("NaN", pa.array([0.0, float("nan"), 2.0])),
    *((str(kind), pa.array(["0", None, "2"], kind)) for kind in (
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
    )),
    ("text of floats", pa.array(["0.0", "nan", "2.0"])),
    ("integer categories", pa.array([0, None, 2]).dictionary_encode()),
    ("list", pa.array([[0], None, [2]])),
    ("empty list", pa.array([[0], [], [2]], pa.large_list(pa.int32()))),
    ("fixed list", pa.array([[0], None, [2]], pa.list_(pa.int64(), 1))),
    ("list of text", pa.array([["0"], [None], ["2"]])),
]  # fmt: skip


@pytest.mark.parametrize("column", [array for _, array in LABELS], ids=[name for name, _ in LABELS])
def test_a_label_is_the_same_in_every_type(read_columns: Any, column: pa.Array) -> None:
    samples, told = read_columns(label=column)
    assert labels(samples) == [0, None, 2] and told == []


def test_bools_are_labels(read_columns: Any) -> None:
    assert labels(read_columns(label=pa.array([True, None, False]))[0]) == [1, None, 0]


FRAMES = {
    "gap": pandas.DataFrame({"label": [0, None, 2]}),
    "nullable": pandas.DataFrame({"label": pandas.array([0, None, 2], "Int64")}),
    "text": pandas.DataFrame({"label": pandas.Series([0, None, 2]).astype(str)}),
    "categories": pandas.DataFrame({"label": pandas.Categorical([0, None, 2])}),
    "object": pandas.DataFrame({"label": pandas.Series([0, None, 2], dtype=object)}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_written_by_pandas(tmp_path: Path, name: str) -> None:
    frame = FRAMES[name].assign(image=IMAGES)
    frame.to_parquet(tmp_path / "x.parquet")
    back = pandas.read_parquet(tmp_path / "x.parquet")["label"]
    numbers: Any = pandas.to_numeric(back.astype(object), errors="coerce")
    assert numbers.astype("Int64").tolist() == [0, pandas.NA, 2]
    assert labels(read(tmp_path / "x.parquet")[0]) == [0, None, 2]


def test_written_by_polars_and_duckdb(tmp_path: Path) -> None:
    frame = polars.DataFrame({"image": IMAGES, "label": ["0", None, "2"]})
    for number, column in enumerate(
        (
            polars.col("label").cast(polars.Categorical), polars.col("label").cast(polars.Float32),
            polars.col("label").cast(polars.Decimal(10, 2)), polars.col("label").cast(polars.Enum(["0", "2"])),
        )
    ):  # fmt: skip
        path = tmp_path / f"{number}.parquet"
        frame.with_columns(column).write_parquet(path)
        assert labels(read(path)[0]) == [0, None, 2], column
    duck = duckdb.connect()
    duck.register("frame", frame)
    for kind in ("HUGEINT", "DECIMAL(18, 3)", "UTINYINT", "ENUM('0', '2')", "INTEGER[1]"):
        path = tmp_path / "duck.parquet"
        value = "[label]" if kind.endswith("]") else "label"
        value = f"CASE WHEN label IS NULL THEN NULL ELSE {value}::{kind} END"
        duck.execute(
            f"COPY (SELECT image, {value} AS label FROM frame) TO '{path}' (FORMAT parquet)"
        ).fetchall()
        assert labels(read(path)[0]) == [0, None, 2], kind


def test_class_labels_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    )
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "label": ["cat", None, "owl"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "x.parquet")
    assert labels(read(tmp_path / "x.parquet")[0]) == data["label"][:] == [0, None, 2]


REFUSED = {
    "names": (pa.array([None, "cat", "dog"]), r"column label: string holds 'cat', expected a label"),
    "categories": (
        pa.array(["cat", None, "dog"]).dictionary_encode(),
        r"column label: dictionary<values=string.* holds 'cat'",
    ),
    "scores": (pa.array([0.5, 1.0, 2.0]), r"column label: double holds 0.5"),
    "prices": (pa.array([Decimal("0.99")] * 3), r"column label: decimal128\(2, 2\) holds Decimal\('0.99'\)"),
    "multi-label": (pa.array([[1, 2], [1], []]), r"column label: list<element: int64> holds a list of 2"),
    "tags": (pa.array([["a"], ["b"], []]), r"column label: list<element: string> holds \['a'\]"),
    "struct": (pa.array([{"id": 1}] * 3), r"column label: struct<id: int64>, expected labels: integers"),
    "time": (pa.array([0, 1, 2], pa.timestamp("s")), r"column label: timestamp\[ms\], expected labels"),
    "boxes": (pa.array([[[1, 2]]] * 3), r"column label: list<element: list<.*>, expected labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_label_that_is_none_is_one_refusal(read_columns: Any, name: str) -> None:
    column, message = REFUSED[name]
    with pytest.raises(UnusableShard, match=message) as caught:
        read_columns(label=column)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("ignore=[label] does without labels")
    samples, told = read_columns(["label"], label=column)
    assert labels(samples) == [None] * 3 and told == []


def test_one_bad_value_among_good_ones_is_one_row(read_columns: Any) -> None:
    assert labels(read_columns(label=pa.array(["1", "cat", ""]))[0]) == [1, "BadLabel", "BadLabel"]
    assert labels(read_columns(label=pa.array([1.0, 0.5, None]))[0]) == [1, "BadLabel", None]
    assert labels(read_columns(label=pa.array([2**40, 1, 2]))[0]) == ["BadLabel", 1, 2]


def test_which_column_is_the_label(read_columns: Any) -> None:
    numbers, names = pa.array([4, 5, 6]), pa.array(["a", "b", "c"])
    for columns, label, others in [
        ({"label": names, "class_id": numbers}, [4, 5, 6], "the label is class_id; label: string is"),
        (
            {"coarse_label": numbers, "fine_label": pa.array([7, 8, 9])},
            [7, 8, 9],
            "is fine_label; coarse_label: int64",
        ),
        (
            {"Label": numbers, "TARGET": pa.array([0, 0, 0])},
            [4, 5, 6],
            "is Label; TARGET: int64 is not taken",
        ),
        ({"label": pa.nulls(3), "cls": numbers}, [4, 5, 6], "is cls; label: null is"),
        (
            {"category": numbers, "class_name": names},
            [None] * 3,
            "there is no label; category: int64, class_name",
        ),
        ({"cls.txt": numbers}, [None] * 3, "there is no label; cls.txt: int64 is not taken"),
        # A mask is called a label too, and is none.
        (
            {"label": pa.array([{"bytes": b"m", "path": "p"}] * 3)},
            [None] * 3,
            "no label; label: struct<bytes",
        ),
    ]:
        samples, told = read_columns(**columns)
        assert labels(samples) == label and len(told) == 1 and others in told[0]
    assert read_columns(other=numbers, classic=names)[1] == []


def test_a_column_of_nothing_is_told(read_columns: Any) -> None:
    for column in (pa.nulls(3), pa.array([None] * 3, pa.float64()), pa.array(["None"] * 3)):
        samples, (told,) = read_columns(label=column)
        assert labels(samples) == [None] * 3 and told.endswith("no row has a label there")


def captions(samples: list[ImageSample | Quarantined]) -> list[Any]:
    return [sample.caption if isinstance(sample, ImageSample) else sample.error for sample in samples]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "c"]), pa.array([b"a", None, b"c"]), pa.array(["a", None, "c"]).dictionary_encode(),
        pa.array(["a", None, "c"], pa.string_view()), pa.array([["a"], [], ["c"]]), pa.array([["a"], None, ["c"]]),
    ],
)  # fmt: skip
def test_a_caption_is_the_same_in_every_type(read_columns: Any, column: pa.Array) -> None:
    assert captions(read_columns(caption=column)[0]) == ["a", None, "c"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([["a", "b"], ["c"], []]), r"column caption: list<element: string> holds a list of 2, expected one"),
        (pa.array([1, 2, 3]), r"column caption: int64, expected text"),
        (pa.array([{"en": "a"}] * 3), r"column caption: struct<en: string>, expected text"),
    ],
)  # fmt: skip
def test_a_caption_that_is_none_is_one_refusal(read_columns: Any, column: pa.Array, message: str) -> None:
    with pytest.raises(UnusableShard, match=message) as caught:
        read_columns(caption=column)
    assert str(caught.value).endswith("ignore=[caption] does without captions")
    assert captions(read_columns(["caption"], caption=column)[0]) == [None] * 3
    assert captions(read_columns(caption=column, text=pa.array(["a", "b", "c"]))[0])[0] in ("a", "BadCaption")


def keys(samples: list[ImageSample | Quarantined]) -> list[str]:
    return [sample.key for sample in samples]


def test_keys_of_every_type(read_columns: Any) -> None:
    ids = [uuid.UUID(int=i) for i in range(3)]
    storage_array = pa.array([each.bytes for each in ids], pa.binary(16))
    for column, expected in [
        (pa.array([7.0, None, 9.0]), ["7", "00000001", "9"]),
        (pa.array([7.0, float("nan"), 9.0]), ["7", "00000001", "9"]),
        (pa.array([7, 8, 9], pa.decimal128(20, 0)), ["7", "8", "9"]),
        (pa.array([b"a", b"b", b"c"]), ["a", "b", "c"]),
        (pa.ExtensionArray.from_storage(pa.uuid(), storage_array), [str(each) for each in ids]),
        (storage_array, [each.hex for each in ids]),
        (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
        (pa.nulls(3), ["00000000", "00000001", "00000002"]),
    ]:
        assert keys(read_columns(id=column)[0]) == expected, column.type
    for column, message in [
        (pa.array([0.5, 1, 2]), "column id: double holds 0.5, expected a key: text or a whole number; drop"),
        (pa.array([[1]] * 3), r"column id: list<element: int64>, expected keys: text or integers"),
        (pa.array([True, False, None]), r"column id: bool, expected keys"),
    ]:
        with pytest.raises(UnusableShard, match=message):
            read_columns(id=column)
    samples, _ = read_columns(id=pa.array([1.0, 0.5, 2.0]))
    assert labels(samples) == [None, "BadKey", None] and keys(samples) == ["1", "00000001", "2"]


def test_json_as_text_or_struct(read_columns: Any) -> None:
    values = [{"label": 5, "x": [1.5, None]}, None, {"label": None, "x": []}]
    for column in (
        pa.array(values),
        pa.array([None if value is None else json.dumps(value) for value in values]),
        pa.array([None if value is None else json.dumps(value).encode() for value in values]),
    ):
        samples, told = read_columns(json=column)
        metas = [sample.meta for sample in samples]
        assert [None if meta is None else json.loads(meta) for meta in metas] == values
        assert labels(samples) == [5, None, None] and told == []
    samples, told = read_columns(json=pa.array([{"a": float("nan")}] * 3))
    assert [sample.meta for sample in samples] == ['{"a": null}'] * 3 and "stored as null" in told[0]
    with pytest.raises(UnusableShard, match=r"column json: struct<at: timestamp.*expected JSON as text"):
        read_columns(json=pa.array([{"at": 0}] * 3, pa.struct([("at", pa.timestamp("ms"))])))
    assert read_columns(["meta"], json=pa.array([b"\xff"] * 3))[1] == []


def test_what_is_no_json(read_columns: Any) -> None:
    """A column `json` is as a tar's .json; one called meta has all kinds of text."""
    assert labels(read_columns(json=pa.array(["{", "{}", None]))[0]) == ["BadJson", None, None]
    samples, told = read_columns(meta=pa.array(["free text", "{}", None]))
    assert [sample.meta for sample in samples] == [None, "{}", None]
    assert told == ["column meta: string is no JSON, and is not kept"]


def encoded(number: int) -> bytes:
    return base64.b64encode(IMAGES[number] + bytes(20))


def test_images_in_base64(tmp_path: Path) -> None:
    uris = [b"data:image/jpeg;base64," + encoded(i) for i in range(3)]
    for name, column in [
        ("image", pa.array([encoded(i) for i in range(3)])),
        ("image", pa.array([encoded(i).decode() for i in range(3)])),
        ("image_base64", pa.array([uri.decode() for uri in uris], pa.large_string())),
        ("image", pa.array([{"bytes": uri, "path": None} for uri in uris])),
    ]:
        pq.write_table(pa.table({name: column}), tmp_path / "x.parquet")
        samples, told = read(tmp_path / "x.parquet")
        assert [s.image[:4] for s in samples if isinstance(s, ImageSample)] == IMAGES
        assert told == ["the images are base64 text or data: URIs: decoded"]


def test_text_that_is_no_image(tmp_path: Path) -> None:
    url = "https://example.org/a.jpg"
    pq.write_table(pa.table({"image": [None, url], "x": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(
        ShardError,
        match=r"no column of images among 2 columns \(image: string, x: int64\); column image: string holds "
        r"'https://example.org/a.jpg', neither base64 nor a data: URI; expected struct",
    ):
        read(tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": [encoded(0).decode(), url]}), tmp_path / "x.parquet")
    samples, _ = read(tmp_path / "x.parquet")
    assert labels(samples) == [None, "NoImage"]
    # Where there is a column of images, text beside it is none.
    table = pa.table({"image": [url], "jpg": [b"\xff\xd8\xff"]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [s.image for s in read(tmp_path / "x.parquet")[0] if isinstance(s, ImageSample)] == [
        b"\xff\xd8\xff"
    ]


def test_tars_and_parquet_have_the_same_labels(read_columns: Any) -> None:
    from tatok_pipe.images.webdataset.samples import read_samples

    for value in (b"3", b"3.0", b" 3\n", b"true", b"None", b"cat", b"", b"0.5", b"99999999999", b"-1"):
        tar = pack(("a.jpg", IMAGES[0]), ("a.cls", value))
        (of_tar,) = read_samples(io.BytesIO(tar), shard="x.tar")
        of_parquet = read_columns(cls=pa.array([b"1", value, b"1"]))[0][1]
        assert labels([of_tar]) == labels([of_parquet]), value
