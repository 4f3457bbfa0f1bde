"""Images into shards: byte for byte, read back by other tools, resumed, and added to."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from tatok_pipe import pack_images
from tatok_pipe.commands.pack_images.shard_packer import PackJob, ShardPacker
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards
from tatok_pipe.errors import RefusedError
from tatok_pipe.images.formats.table import NAMES
from tatok_pipe.images.limits import DEFAULT_LIMITS
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.format import read_quarantine
from tests.entries import assert_told
from tests.pictures import crop_members, encode, write_shard

CLASSES = ("beagle", "tabby", "zebra")


def read(url: str) -> list[ImageSample | Quarantined]:
    with open_samples(url, info=shard_info(url)) as samples:
        return list(samples)


def write_photos(folder: Path, count: int = 6, *, first: int = 0) -> Path:
    crops = [(name, data) for name, data in crop_members(first + count) if not name.endswith(".cls")][first:]
    for number, (name, data) in enumerate(crops):
        path = folder / CLASSES[number % 3] / name.replace("_", ".")  # a dot in the key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pack(shard: str, output: Path, layout: str, class_names: tuple[str, ...] = CLASSES) -> Path:
    packer = ShardPacker(PackJob(str(output), layout, DEFAULT_LIMITS, class_names))
    result = packer(shard, max_tries=1)
    assert result.error == ""
    (path,) = output.glob("*.tar" if layout == "webdataset" else "*.parquet")
    assert result.bytes_out == path.stat().st_size
    return path


@pytest.fixture
def photos(tmp_path: Path) -> ShardFile:
    folder = write_photos(tmp_path / "photos")
    name = next(folder.glob("*/*")).with_suffix("")
    Path(f"{name}.txt").write_text("a caption")
    Path(f"{name}.json").write_text('{"x": 1}')
    place = ListPlace(str(tmp_path / "list" / "_input.parquet"))
    (shard,) = find_image_shards(str(folder), option="input.shards", place=place)
    return shard


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_what_is_packed_is_what_was_there(photos: ShardFile, tmp_path: Path, layout: str) -> None:
    path = pack(photos.url, tmp_path / "out", layout)
    before, after = read(photos.url), read(str(path))
    assert len(before) == 6 and any(isinstance(each, ImageSample) and each.caption for each in before)

    def content(samples: list[ImageSample | Quarantined]) -> list[tuple[object, ...]]:
        return [
            (each.key.replace("%2E", "."), each.image, each.label, each.caption, each.meta)
            for each in samples
            if isinstance(each, ImageSample)
        ]

    assert content(after) == content(before)
    again = pack(photos.url, tmp_path / "again", layout)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_a_manifest_is_packed_as_its_images_are(photos: ShardFile, tmp_path: Path) -> None:
    samples = [each for each in read(photos.url) if isinstance(each, ImageSample)]
    paths = {
        str(path.relative_to(tmp_path / "photos").with_suffix("")): path
        for path in tmp_path.glob("photos/*/*g")
    }
    rows = [
        {"url": str(paths[each.key]), "key": each.key, "class": each.key.partition("/")[0]}
        for each in samples
    ]
    rows = [row | {"caption": each.caption} for row, each in zip(rows, samples, strict=True)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = ListPlace(str(tmp_path / "of-manifest" / "_input.parquet"))
    (shard,) = find_image_shards(f"{tmp_path}/list.jsonl", option="input.shards", place=place)
    assert class_names_of(shard, DEFAULT_LIMITS) == CLASSES
    packed = read(str(pack(shard.url, tmp_path / "out", "webdataset")))
    expected = read(str(pack(photos.url, tmp_path / "expected", "webdataset")))
    assert [replace(each, meta=None) for each in expected if isinstance(each, ImageSample)] == packed


def test_a_tar_of_tars_is_packed_as_its_classes_are(tmp_path: Path) -> None:
    members = [(name, data) for name, data in crop_members(6) if not name.endswith(".cls")]
    inner = [
        Path(write_shard(tmp_path / "cat.tar", members[:2])),
        Path(write_shard(tmp_path / "dog.tar", members[2:])),
    ]
    outer = write_shard(tmp_path / "train.tar", [(path.name, path.read_bytes()) for path in inner])
    place = ListPlace(str(tmp_path / "list" / "_input.parquet"))
    shards = find_image_shards(outer, option="input.shards", place=place)
    found = {}
    for number, shard in enumerate(shards):
        path = pack(
            shard.url, tmp_path / f"out-{number}", "webdataset", class_names_of(shard, DEFAULT_LIMITS)
        )
        found |= {
            each.key: (each.label, each.image) for each in read(str(path)) if isinstance(each, ImageSample)
        }
    names = [("cat", 0)] * 2 + [("dog", 1)] * 4
    assert found == {
        f"{folder}/{name.rpartition('.')[0]}": (label, data)
        for (name, data), (folder, label) in zip(members, names, strict=True)
    }


def test_webdataset_itself_reads_the_tars(photos: ShardFile, tmp_path: Path) -> None:
    path = pack(photos.url, tmp_path / "out", "webdataset")
    rows = list(WebDataset(str(path), shardshuffle=False))
    expected = [each for each in read(photos.url) if isinstance(each, ImageSample)]
    images = [next(row[name] for name in ("jpg", "png") if name in row) for row in rows]
    assert images == [each.image for each in expected]
    assert [int(row["cls"]) for row in rows] == [each.label for each in expected]


def test_parquet_has_images_and_names_as_datasets_writes_them(photos: ShardFile, tmp_path: Path) -> None:
    path = pack(photos.url, tmp_path / "out", "parquet")
    assert class_names_of(ShardFile(str(path), None), DEFAULT_LIMITS) == CLASSES
    info = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert info["image"] == {"_type": "Image"} and info["label"]["_type"] == "ClassLabel"
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_dict(info)
    row = datasets.Dataset.from_parquet(str(path), features=features, cache_dir=str(tmp_path / "cache"))[0]
    assert row["image"].size == Image.open(io.BytesIO(pq.read_table(path)["image"][0]["bytes"].as_py())).size
    assert features["label"].int2str(row["label"]) == "beagle"


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_images_of_every_format_are_packed_and_found_again(tmp_path: Path, layout: str) -> None:
    image = Image.open(io.BytesIO(crop_members(1)[0][1])).convert("RGB")
    images = {name: encode(image, name) for name in NAMES}
    write_shard(tmp_path / "in.tar", [(f"{name}.png", data) for name, data in images.items()])
    packed = read(str(pack(str(tmp_path / "in.tar"), tmp_path / "out", layout)))
    assert {each.key: each.image for each in packed if isinstance(each, ImageSample)} == images


def test_what_is_no_image_is_quarantined(tmp_path: Path) -> None:
    members = [*crop_members(2), ("bad.jpg", b"<html>404</html>"), ("lone.txt", b"x")]
    members.append(("photo.jpg", encode(Image.new("RGB", (4, 4)), "PNG")))  # named after what it is
    path = pack(write_shard(tmp_path / "a.tar", members), tmp_path / "out", "webdataset", ())
    (rows,) = [read_quarantine(str(each)) for each in (tmp_path / "out" / "_quarantine").iterdir()]
    assert [(row.key, row.error) for row in rows] == [("bad", "NotAnImage"), ("lone", "NoImage")]
    assert sum(name.endswith("photo.png") for name in _names(path)) == 1
    packer = ShardPacker(PackJob(str(tmp_path / "none"), "webdataset", DEFAULT_LIMITS))
    told = packer(write_shard(tmp_path / "b.tar", [("bad.jpg", b"<html>")]), max_tries=1).error
    assert "none of 1 samples gives a row (1 NotAnImage" in told and not (tmp_path / "none").exists()


def _names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        assert {member.mtime for member in tar} == {0}
        return tar.getnames()


@pytest.mark.slow
@pytest.mark.ray
def test_the_job_is_resumed_and_added_to(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 6), tmp_path / "shards"
    argv = [f"input.shards={photos}", f"output.url={output}", "input.images_per_part=4"]

    def run() -> dict[str, object]:
        command = [sys.executable, "-m", "tatok_pipe.pack_images", *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stderr.rpartition("summary ")[2])

    told = run()
    assert (told["shards_done"], told["images"]) == (2, 6)
    assert (output / "names.txt").read_text() == "beagle\ntabby\nzebra\n"
    kept = next(output.glob("*000001*.tar"))
    kept.unlink()  # as after a crash
    write_photos(photos, 2, first=6)
    (photos / "ape").mkdir()
    (photos / "ape" / "1.png").write_bytes(encode(Image.new("RGB", (8, 8))))
    told = run()
    assert (told["shards_done_before"], told["shards_done"]) == (1, 2)
    assert (output / "names.txt").read_text() == "beagle\ntabby\nzebra\nape\n"
    labels = {
        sample.key.partition("/")[0]: sample.label
        for shard in find_image_shards(str(output), option="input.shards")
        for sample in read(shard.url)
        if isinstance(sample, ImageSample)
    }
    assert labels == {"beagle": 0, "tabby": 1, "zebra": 2, "ape": 3}

    (photos / "ape" / "1.png").write_bytes(encode(Image.new("RGB", (9, 9))) + b"more")
    assert_told(
        pack_images.main, argv, r"1 of 3 image shards changed since they were packed: .*photos#000002 \(was"
    )
    with pytest.raises(RefusedError, match="in layout webdataset, this run makes format 1 in layout parquet"):
        pack_images.main([*argv, "output.layout=parquet"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "input.shards: not given; expected a URL or path"),
        (
            ["input.shards=photos", "output.url=photos/shards"],
            "inside input.shards=photos, where a later run would",
        ),
        (["input.shards=photos/a.txt"], "no .tar, .zip or .parquet|given 1 × a list or text"),
        (["input.shards=photos", "output.layout=tar"], "output.layout=.*expected .*webdataset.*parquet"),
        (["input.shards=photos", "input.images_per_part=0"], "images_per_part=0: expected at least 1"),
    ],
)
def test_what_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(Path("photos"))
    Path("photos/a.txt").write_text("x")
    assert_told(pack_images.main, argv, told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
