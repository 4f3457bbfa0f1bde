"""Several manifests as one list, and names of classes that the schema of one tells."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import class_names_of, classes_by_name
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.tokens.format import token_shard_name
from tests.images.manifests import Row, contents, plan, read, refusal, write_images, write_lines, write_table
from tests.pictures import crop_members, write_shard

datasets = pytest.importorskip("datasets")


def write_class_labels(path: Path, rows: list[Row], names: list[str]) -> Path:
    """By Hugging Face's own package."""
    features = datasets.Features({"url": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


def test_several_are_read_as_one(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", "1.jpg", "2.jpg", "more/3.jpg", "more/4.jpg")
    one = [{"url": "2.jpg", "label": "dog"}, {"url": "1.jpg", "caption": "one"}]
    other = [{"url": "3.jpg", "label": "cat"}, {"url": f"{tmp_path}/photos/more/4.jpg", "label": "dog"}]
    first = write_lines(tmp_path / "photos/a.jsonl", one)
    second = write_table(tmp_path / "photos/more/b.parquet", other)
    shards = plan(f"{first}::{second}", tmp_path, size=3)
    expected = {"1": (None, "one"), "2": (1, None), "more/3": (0, None), "more/4": (1, None)}
    assert contents(shards) == expected
    assert [storage.canonical_url(shard.url) for shard in shards] == [
        f"{tmp_path}/photos/manifests#{number:06d}" for number in range(2)
    ]
    assert token_shard_name(shards[0].url).startswith("manifests-000000-")
    assert class_names_of(shards[0], DEFAULT_LIMITS) == classes_by_name(shards) == ("cat", "dog")
    # The same rows in one manifest are the same images.
    joined = [*one, *(row | {"url": f"more/{row['url']}"} for row in other[:1]), other[1]]
    assert contents(plan(write_lines(tmp_path / "photos/c.jsonl", joined), tmp_path / "c")) == expected


def test_a_pattern_grows(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", *(f"{name}.jpg" for name in "abcdef"))
    spec = f"{tmp_path}/photos/part-*.parquet"
    for number, names in enumerate(("bd", "f")):
        write_table(tmp_path / f"photos/part-{number}.parquet", [{"url": f"{name}.jpg"} for name in names])
    before = plan(spec, tmp_path)
    write_table(tmp_path / "photos/part-2.parquet", [{"url": f"{name}.jpg"} for name in "aec"])
    after = plan(spec, tmp_path)
    assert after[:2] == before
    assert [list(contents([shard])) for shard in after] == [["b", "d"], ["f"], ["a", "c"], ["e"]]


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"url": "a.jpg"}, {"url": "./a.jpg"}, r"b.jsonl: row 1: has the key 'a', as row 1 of .*/a.jsonl has; "),
        (
            {"url": "a.jpg", "label": 3},
            {"url": "b.jpg", "label": "cat"},
            r"b.jsonl: labels are names of classes, and numbers in .*/a.jsonl; write one kind, or input.limits.ignore=",
        ),
        ({"url": "a.jpg"}, {"address": "b.jpg"}, "b.jsonl: none of the columns image_url, url, file_name"),
        (
            {"url": "a.jpg"},
            {"url": "https://example.org/b.jpg"},
            "b.jsonl: 1 of 2 images are in another store than the manifest, first row 1: https://example.org/b.jpg; ",
        ),
        ({"url": "a.jpg"}, {"url": "nonsense://b.jpg"}, "b.jsonl: row 1: nonsense://"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(tmp_path: Path, one: Row, other: Row, told: str) -> None:
    write_lines(tmp_path / "m/a.jsonl", [one])
    write_lines(tmp_path / "m/b.jsonl", [other])
    with pytest.raises(UserError, match=f"^input.shards={tmp_path}/m/{told}"):
        plan(f"{tmp_path}/m/*.jsonl", tmp_path)
    assert not (tmp_path / "_input.parquet").exists()


def test_other_files_among_them(tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "a.jsonl", [{"url": "a.jpg"}])
    tar = write_shard(tmp_path / "a.tar", crop_members(1))
    with pytest.raises(
        UserError, match=rf"a.jsonl: a manifest, and 1 of 2 files are none, first {tar}; give each kind"
    ):
        plan(f"{manifest}::{tar}", tmp_path)
    storage.publish_bytes(b'{"url": "b.jpg"}', "memory://manifests/b.jsonl", exclusive=False)
    with pytest.raises(
        UserError, match="a.jsonl: a manifest, and memory://manifests/b.jsonl is in another store"
    ):
        plan(f"{manifest}::memory://manifests/b.jsonl", tmp_path)
    write_table(tmp_path / "t/a.parquet", [{"url": "a.jpg"}])
    pq.write_table(pa.table({"url": ["b.jpg"], "image": pa.array([b"an image"])}), tmp_path / "t/b.parquet")
    with pytest.raises(UserError, match="t/b.parquet: holds images, not addresses of some; give it apart"):
        plan(tmp_path / "t", tmp_path)


def test_names_that_the_schema_tells(tmp_path: Path) -> None:
    write_images(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    rows: list[Row] = [
        {"url": "1.jpg", "label": 1},
        {"url": "2.jpg", "label": 0},
        {"url": "3.jpg", "label": None},
    ]
    manifest = write_class_labels(tmp_path / "m.parquet", rows, ["zebra", "ape", "cat"])
    shards = plan(manifest, tmp_path, size=9)
    assert (
        class_names_of(shards[0], DEFAULT_LIMITS) == ("zebra", "ape", "cat") and classes_by_name(shards) == ()
    )
    labels = {"1": (1, None), "2": (0, None), "3": (None, None)}
    assert contents(shards) == contents(shards, class_names=("zebra", "ape", "cat")) == labels
    with pytest.raises(
        UnusableShard, match=r"m.parquet#000000: its classes have other names .*class 0 is zebra, not ape"
    ):
        read(shards[0], class_names=("ape", "zebra", "cat"))
    limits = ShardLimits(ignore=["label"])
    assert set(contents(shards, limits=limits, class_names=("ape",)).values()) == {(None, None)}
    # Numbers without names, and the same names again, go with them; others do not.
    more = write_lines(tmp_path / "n.jsonl", [{"url": "4.jpg", "label": 2}])
    both = plan(f"{manifest}::{more}", tmp_path / "both", size=9)
    assert class_names_of(both[0], DEFAULT_LIMITS) == ("zebra", "ape", "cat")
    other = write_class_labels(tmp_path / "o.parquet", [{"url": "5.jpg", "label": 1}], ["zebra", "cat"])
    told = rf"o.parquet: its classes have other names than those of {manifest} \(class 1 is cat, not ape\); give them"
    with pytest.raises(UserError, match=told):
        plan(f"{manifest}::{other}", tmp_path / "other")
    named = write_lines(tmp_path / "p.jsonl", [{"url": "6.jpg", "label": "ape"}])
    with pytest.raises(UserError, match="p.jsonl: labels are names of classes, and numbers in"):
        plan(f"{manifest}::{named}", tmp_path / "named")


def test_several_with_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    write_lines(tmp_path / "m/a.jsonl", [{"url": "a.jpg"}])
    bad = write_lines(tmp_path / "m/b.jsonl", [{"url": "b.jpg"}, {"url": " "}])
    assert refusal(bad, tmp_path).startswith("row 2: column url is empty")
    with pytest.raises(UserError, match=f"{bad}: row 2: column url is empty, expected an address"):
        plan(f"{tmp_path}/m/a.jsonl::{bad}", tmp_path)
