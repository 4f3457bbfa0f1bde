"""Manifests: which images a list of addresses means, what is said of them, what changes are seen, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.shard_errors import LastingShardError
from tatok_pipe.images.source import hash_shard, open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.tokens.format import token_shard_name
from tests.images.manifests import Row, contents, plan, read, refusal, write_images, write_lines, write_table

ROWS: list[Row] = [
    {"url": "dog/2.jpg", "label": "dog", "caption": "a dog"},
    {"url": "cat/1.jpg", "label": "cat", "caption": None},
    {"url": "3.jpg", "label": None, "caption": "nothing"},
]


@pytest.mark.parametrize("write", [write_lines, write_table])
def test_what_the_rows_say(tmp_path: Path, write: Any) -> None:
    photos = write_images(tmp_path / "photos", "dog/2.jpg", "cat/1.jpg", "3.jpg", "of-no-row.jpg")
    manifest = write(photos / ("list.jsonl" if write is write_lines else "list.parquet"), ROWS)
    shards = plan(manifest, tmp_path)
    assert [storage.canonical_url(shard.url) for shard in shards] == [f"{manifest}#{n:06d}" for n in range(2)]
    assert storage.parse_part(shards[0].url) is not None and class_names_of(shards[0], DEFAULT_LIMITS) == (
        "cat",
        "dog",
    )
    assert token_shard_name(shards[1].url).startswith("list-000001-")
    assert [shard.size_bytes for shard in shards] == [16, 8]
    assert [[sample.key for sample in read(shard)] for shard in shards] == [["3", "cat/1"], ["dog/2"]]
    assert contents(shards) == {"3": (None, "nothing"), "cat/1": (0, None), "dog/2": (1, "a dog")}
    known = ("zebra", "dog", "cat")
    assert contents(shards, class_names=known)["dog/2"] == (1, "a dog")
    assert contents(shards, class_names=known)["cat/1"] == (2, None)
    with pytest.raises(LastingShardError, match="class 'cat' is none of the 1 that are known"):
        read(shards[0], class_names=("dog",))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"url": "a.jpg", "label": 3}, (3, None)),
        ({"url": "a.jpg", "label": "3"}, (3, None)),
        ({"url": "a.jpg", "cls": 4.0, "text": "t"}, (4, "t")),
        ({"URL": "a.jpg", "TEXT": "t"}, (None, "t")),  # LAION's
        ({"file_name": "a.jpg", "text": "t"}, (None, "t")),  # Hugging Face's
        ({"url": "https://example.org/page", "image_url": "a.jpg"}, (None, None)),
        ({"url": "./a.jpg", "label": "cat", "class_id": 5}, (5, None)),  # of columns one of numbers first
        ({"url": "a.jpg", "class_name": "cat"}, (0, None)),
        ({"url": "a.jpg", "label": [7], "caption": ["t"]}, (7, "t")),
        ({"url": "a.jpg", "label": None, "caption": None}, (None, None)),
    ],
)
@pytest.mark.parametrize("write", [write_lines, write_table])
def test_columns_of_others(
    tmp_path: Path, row: Row, expected: tuple[int | None, str | None], write: Any
) -> None:
    write_images(tmp_path, "a.jpg")
    manifest = write(tmp_path / ("m.jsonl" if write is write_lines else "m.parquet"), [row])
    assert contents(plan(manifest, tmp_path / "out")) == {"a": expected}


def test_what_else_looks_like_a_label_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, "a.jpg")
    manifest = write_lines(tmp_path / "m.jsonl", [{"url": "a.jpg", "label": 3, "category": "pets"}])
    plan(manifest, tmp_path / "out")
    assert f"{manifest}: the label is label; category is not taken" in caplog.text


def test_what_is_ignored_need_not_be_right(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg")
    rows = [{"url": "a.jpg", "label": 3, "caption": "c"}, {"url": "b.jpg", "label": "x", "caption": 5}]
    limits = ShardLimits(ignore=["label", "caption"])
    found = plan(write_lines(tmp_path / "m.jsonl", rows), tmp_path / "out", limits=limits)
    assert contents(found) == {"a": (None, None), "b": (None, None)}


def test_keys(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", "a/b.c.jpg", "no-extension", "d.jpg")
    write_images(tmp_path, "beside.jpg")
    rows = [
        "a/b.c.jpg",
        "no-extension",
        "../beside.jpg",
        f"{tmp_path}/photos/d.jpg",
        f"file://{tmp_path}/beside.jpg",
    ]
    manifest = write_lines(tmp_path / "photos/m.jsonl", [{"url": row} for row in rows])
    elsewhere = f"{tmp_path}/beside".lstrip("/")
    assert set(contents(plan(manifest, tmp_path, size=9))) == {
        "a/b.c",
        "no-extension",
        "../beside",
        "d",
        elsewhere,
    }
    given = write_lines(
        tmp_path / "photos/n.jsonl", [{"url": "d.jpg", "key": "x"}, {"url": "./d.jpg", "key": "7"}]
    )
    assert set(contents(plan(given, tmp_path / "n"))) == {"x", "7"}  # one image twice
    some = write_lines(tmp_path / "photos/s.jsonl", [{"url": "d.jpg", "key": "x"}, {"url": "no-extension"}])
    assert set(contents(plan(some, tmp_path / "s"))) == {"x", "no-extension"}


def test_a_grown_manifest_keeps_its_parts(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", *(f"{name}.jpg" for name in "abcdef"))
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    rows: list[Row] = [{"url": f"{name}.jpg", "caption": name} for name in "bdf"]
    manifest = write_lines(photos / "m.jsonl", rows)
    before = plan(manifest, tmp_path)
    stamp = (tmp_path / "_input.parquet").stat().st_mtime_ns
    write_lines(manifest, rows[::-1])  # the order of the rows is nothing
    assert plan(manifest, tmp_path) == before
    assert (tmp_path / "_input.parquet").stat().st_mtime_ns == stamp
    write_lines(manifest, [*({"url": f"{name}.jpg", "caption": name} for name in "aec"), *rows])
    after = plan(manifest, tmp_path)
    assert [list(contents([shard])) for shard in after] == [["b", "d"], ["f"], ["a", "c"], ["e"]]
    hashes = [hash_shard(shard.url) for shard in after]
    times = [shard.mtime_ns for shard in after]

    # Another caption, and another row, are seen in their part alone.
    rows = [{"url": f"{name}.jpg", "caption": "F" if name == "f" else name} for name in "abdef"]
    write_lines(manifest, rows)
    now = plan(manifest, tmp_path)
    assert [list(contents([shard])) for shard in now] == [["b", "d"], ["f"], ["a"], ["e"]]
    changed = [
        one != other for one, other in zip(hashes, (hash_shard(shard.url) for shard in now), strict=True)
    ]
    assert changed == [False, True, True, False]
    assert [one != shard.mtime_ns for one, shard in zip(times, now, strict=True)] == changed


def test_versions_of_a_part(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", "1.jpg")
    past = time.time_ns() - 10**12
    os.utime(photos / "1.jpg", ns=(past, past))
    manifest = write_lines(photos / "m.jsonl", [{"url": "1.jpg", "label": 4}, {"url": "2.jpg"}])
    (shard,) = plan(manifest, tmp_path)
    info = shard_info(shard.url)
    assert (info.size_bytes, info.etag, info.mtime_ns) == (8, "", shard.mtime_ns)
    hasher = hashlib.sha256()
    samples = read(shard, hasher=hasher)
    assert [(sample.key, type(sample)) for sample in samples] == [("1", ImageSample), ("2", Quarantined)]
    assert hasher.hexdigest() == hash_shard(shard.url)
    write_images(photos, "2.jpg")  # it is there now
    assert shard_info(shard.url) != info
    with (
        pytest.raises(OSError, match="m.jsonl#000000: changed before it was read"),
        open_samples(shard.url, info=info),
    ):
        pass
    (again,) = plan(manifest, tmp_path)
    assert again.size_bytes == 16 and set(contents([again])) == {"1", "2"}
    write_images(photos, "1.jpg", data=b"AN IMAGE")
    assert hash_shard(again.url) != hash_shard(shard.url) or shard_info(again.url).mtime_ns != info.mtime_ns


def test_images_that_cannot_be_opened_are_quarantined(tmp_path: Path) -> None:
    write_images(tmp_path, "good.jpg", "large.jpg", data=bytes(100))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    names = ("good", "large", "folder", "link", "missing", "good.jpg/below")
    (tmp_path / "large.jpg").write_bytes(bytes(101))
    manifest = write_lines(tmp_path / "m.jsonl", [{"url": f"{name}.jpg", "key": name} for name in names])
    (shard,) = plan(manifest, tmp_path / "out", size=9)
    limits = ShardLimits(max_member_bytes=100)
    found = {each.key: each for each in read(shard, limits=limits)}
    errors = {key: each.error for key, each in found.items() if isinstance(each, Quarantined)}
    assert errors == {key: "NotFound" for key in names[2:]} | {"large": "TooManyBytes"}
    missing = found["missing"]
    assert isinstance(missing, Quarantined) and str(tmp_path / "missing.jpg") in missing.message
    assert missing.stage == "shard" and "\n" not in missing.message


def test_many_images_of_one_folder(tmp_path: Path) -> None:
    """They are not asked for one by one, but the folder is listed."""
    names = [f"{number}.jpg" for number in range(40)]
    write_images(tmp_path, *names[1:])
    (tmp_path / names[1]).unlink()
    (tmp_path / names[1]).mkdir()
    shards = plan(
        write_lines(tmp_path / "m.jsonl", [{"url": name} for name in names]), tmp_path / "out", size=50
    )
    errors = {each.key for each in read(shards[0]) if isinstance(each, Quarantined)}
    assert errors == {"0", "1"} and shards[0].size_bytes == 38 * 8


def test_other_stores(tmp_path: Path) -> None:
    storage.publish_bytes(b"an image", "memory://elsewhere/a.jpg", exclusive=False)
    rows = [{"url": "memory://elsewhere/a.jpg"}, {"url": "memory://elsewhere/b.jpg"}]
    manifest = write_lines(tmp_path / "m.jsonl", rows)
    assert refusal(manifest, tmp_path).startswith("2 of 2 images are in another store than the manifest")
    found = read(plan(manifest, tmp_path, other_stores=True)[0])
    assert [type(each) for each in found] == [ImageSample, Quarantined]
    for url in ("s3://bucket/a.jpg", "simplecache::s3://bucket/a.jpg", "data:image/png;base64,AAAA"):
        manifest = write_lines(tmp_path / "n.jsonl", [{"url": "x.jpg"}, {"url": url}])
        told = refusal(manifest, tmp_path / "n")
        assert told.startswith("1 of 2 images are in another store than the manifest, first row 2: ")
    manifest = write_lines(tmp_path / "n.jsonl", [{"url": "x.jpg"}, {"url": "nonsense://a.jpg"}])
    assert refusal(manifest, tmp_path / "n", other_stores=True).startswith("row 2: nonsense://")
    url = "memory://manifests/m.jsonl"
    storage.publish_bytes(b'{"url": "a.jpg", "label": 3}', url, exclusive=False)
    storage.publish_bytes(b"an image", "memory://manifests/a.jpg", exclusive=False)
    (shard,) = plan(url, tmp_path / "memory")
    assert contents([shard]) == {"a": (3, None)} and shard.size_bytes == 8 and len(shard.etag) == 32


BAD: list[tuple[bytes | list[Row], str]] = [
    (b"", "there is nothing in it; write a row an image"),
    (b"\n \n", "there is nothing in it"),
    (
        [{"image": "a.jpg", "x": 1}],
        "none of the columns image_url, url, file_name, only image, x; call the column",
    ),
    (b'{"url": "a.jpg"}\n{"url": ', "line 2 is no JSON: Expecting value"),
    (b'["a.jpg"]', "line 1 holds list, expected an object; write one object a line"),
    (b'{"url": "a\xff.jpg"}', "line 1 is no JSON: 'utf-8' codec can't decode"),
    ([{"url": 1}, {"url": 2}], "column url is int64, expected text"),
    (
        [{"url": "a.jpg"}, {"url": 2}],
        "column url holds values that are no column: first str in row 1, int in row 2",
    ),
    ([{"url": "a.jpg"}, {"label": 2}], "row 2: column url is null, expected an address"),
    ([{"url": "a.jpg"}, {"url": " "}], "row 2: column url is empty, expected an address"),
    ([{"url": "a.jpg"}, {"url": "./a.jpg"}], "row 2: has the key 'a', as row 1 has; give a column key"),
    (
        [{"url": "a.jpg", "key": 1}, {"url": "b.jpg", "key": 1}],
        "row 2: has the key '1', as row 1 has; give every row",
    ),
    (
        [{"url": "a.jpg", "label": "3"}, {"url": "b.jpg", "label": "cat"}],
        "row 2: column label holds 'cat', and row 1 3: expected numbers of classes, or names, not both; write one "
        "kind, or input.limits.ignore=[label] does without labels",
    ),
    (
        [{"url": "a.jpg", "label": "cat"}, {"url": "b.jpg", "label": 3}],
        "column label holds values that are no column: first str in row 1, int in row 2; write values of one kind, or "
        "input.limits.ignore=[label] does without labels",
    ),
    (
        [{"url": "a.jpg", "label": 0.5}],
        "row 1: column label holds 0.5, expected a label: one whole number of 32 bits",
    ),
    ([{"url": "a.jpg", "label": ""}], "row 1: column label holds '', expected a label"),
    ([{"url": "a.jpg", "label": {"id": 3}}], "column label is struct<id: int64>, expected labels"),
    ([{"url": "a.jpg", "label": "two\nlines"}], "column label holds 1 names of classes, expected at most"),
    (
        [{"url": "a.jpg", "caption": 3}],
        "column caption is int64, expected text; drop the column, or input.limits.ignore=",
    ),
    (
        [{"url": "a.jpg", "caption": ["a", "b"]}],
        "row 1: column caption holds a list of 2, expected one caption",
    ),
    ([{"url": "a.jpg", "key": 0.5}], "row 1: column key holds 0.5, expected a key"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_manifests(tmp_path: Path, content: bytes | list[Row], message: str) -> None:
    manifest = tmp_path / "m.jsonl"
    if isinstance(content, bytes):
        manifest.write_bytes(content)
    else:
        write_lines(manifest, content)
    assert refusal(manifest, tmp_path).startswith(message)


def test_bad_manifests_in_parquet(tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table({"url": pa.array([], pa.string())}), manifest)
    assert refusal(manifest, tmp_path).startswith("there is no row in it")
    pq.write_table(pa.table({"url": ["a.jpg"] * 1000}), manifest, compression="none")
    data = bytearray(manifest.read_bytes())
    data[30] ^= 0xFF
    manifest.write_bytes(data)
    with pytest.raises(UserError, match=rf"input.shards={manifest}: .*; write or copy the shard again"):
        plan(manifest, tmp_path)


def test_a_shard_with_images_is_no_manifest(tmp_path: Path) -> None:
    table = pa.table({"url": ["https://example.org/a.jpg"], "image": pa.array([b"an image"], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    (shard,) = plan(tmp_path / "a.parquet", tmp_path)
    assert shard.url == f"{tmp_path}/a.parquet" and not (tmp_path / "_input.parquet").exists()


def test_a_manifest_is_no_image_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_lines(tmp_path / "lines" / f"{name}.jsonl", [{"url": "a.jpg"}])
    with pytest.raises(UserError, match="a.jsonl: a manifest, expected image shards"):
        find_image_shards(f"{tmp_path}/lines/a.jsonl", option="input.shards")
    with pytest.raises(
        UserError, match=r"lines: no .tar.*: 2 × a list of images, first: .*given by its name"
    ):
        plan(tmp_path / "lines", tmp_path)
    with pytest.raises(UserError, match="no, thank you"):
        plan(tmp_path / "lines/a.jsonl", tmp_path, refusal="no, thank you")


def test_a_manifest_beside_images_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_images(tmp_path / "photos", "a.jpg")
    write_lines(photos / "metadata.jsonl", [{"file_name": "a.jpg", "text": "t"}])
    assert len(plan(photos, tmp_path)) == 1
    assert f"{photos}/metadata.jsonl: beside the images, and not read" in caplog.text
    assert contents(plan(photos / "metadata.jsonl", tmp_path / "m")) == {"a": (None, "t")}


def test_a_list_of_another_manifest_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    plan(write_lines(tmp_path / "a.jsonl", [{"url": "a.jpg"}]), tmp_path)
    with pytest.raises(
        UserError, match=f"what is there was begun from {tmp_path}/a.jsonl; give another output"
    ):
        plan(write_lines(tmp_path / "b.jsonl", [{"url": "a.jpg"}]), tmp_path)


@pytest.mark.s3
def test_a_manifest_on_s3(s3_url: str) -> None:
    for name in ("cat/1.jpg", "dog/2 3.jpg"):
        storage.publish_bytes(b"an image", storage.join(s3_url, name), exclusive=False)
    rows = [
        {"url": f"{s3_url}/cat/1.jpg", "label": "cat"},
        {"url": "dog/2 3.jpg", "label": "dog"},
        {"url": "no.jpg"},
    ]
    url = storage.join(s3_url, "m.jsonl")
    storage.publish_bytes("\n".join(map(json.dumps, rows)).encode(), url, exclusive=False)
    place = ListPlace(storage.join(s3_url, "out/_input.parquet"), images_per_part=2)
    first, second = find_image_shards(url, option="input.shards", place=place)
    assert (first.size_bytes, second.size_bytes, len(first.etag)) == (16, 0, 32)
    assert contents([first]) == {"cat/1": (0, None), "dog/2 3": (1, None)}
    (missing,) = read(second)
    assert isinstance(missing, Quarantined) and missing.error == "NotFound"
    # Another image of the same size is another version, as the store's ETag tells.
    storage.publish_bytes(b"AN IMAGE", storage.join(s3_url, "cat/1.jpg"), exclusive=False)
    changed, same = find_image_shards(url, option="input.shards", place=place)
    assert changed.etag != first.etag and same == second
    with pytest.raises(UserError, match="1 of 1 images are in another store"):
        storage.publish_bytes(b'{"url": "s3://other/a.jpg"}', url, exclusive=False)
        find_image_shards(url, option="input.shards", place=place)
