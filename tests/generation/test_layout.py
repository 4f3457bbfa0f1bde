"""Generated images on disk and on S3: what comes back, the same bytes twice, and a commit that no crash tears."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from webdataset import compat

from tatok_pipe import storage
from tatok_pipe.ar.generation import layout
from tatok_pipe.ar.generation.layout import (
    GeneratedImage,
    commit_shard,
    committed_shards,
    read_rows,
    read_shard,
)
from tatok_pipe.ar.generation.worker import encode_image

KINDS = [(kind, image_format) for kind in layout.LAYOUTS for image_format in layout.IMAGE_FORMATS]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where images go: a local directory, or a prefix on S3."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_url")


def make_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def make_images(image_format: str = "png", *, first: int = 0, count: int = 5) -> list[GeneratedImage]:
    """Images of noise, from none to many patches, with a class and without."""
    return [
        GeneratedImage(
            number=number,
            seed=(1 << 62) + number,
            label=None if number % 3 == 2 else number,
            global_codes=[number, 7, 0],
            patch_codes=list(range(100, 100 + number % 5)),
            patch_positions=list(range(0, 3 * (number % 5), 3)),
            image=encode_image(make_pixels(number), image_format),
        )
        for number in range(first, first + count)
    ]


def content(url: str) -> dict[str, bytes]:
    """All files of an output."""
    names = [
        f"{folder}/{name}"
        for folder in ("images", "shards")
        for name in storage.list_files(f"{url}/{folder}")
    ]
    return {name: storage.read_bytes(storage.join(url, name)) for name in names}


@pytest.mark.parametrize(("kind", "image_format"), KINDS)
def test_a_shard_comes_back_as_it_was(output: str, kind: str, image_format: str) -> None:
    shards = {"000000": make_images(image_format), "000001": make_images(image_format, first=5, count=2)}
    assert committed_shards(output) == set()
    num_bytes, done = 0, set()
    for name, images in shards.items():
        num_bytes += commit_shard(output, name, images, layout=kind, image_format=image_format)
        done.add(name)
        assert committed_shards(output) == done
        assert num_bytes == sum(map(len, content(output).values()))
    for name, images in shards.items():
        assert list(read_shard(output, name, layout=kind, image_format=image_format)) == images
        rows = read_rows(output, name)
        assert [
            GeneratedImage.from_row(row, image.image) for row, image in zip(rows, images, strict=True)
        ] == images
        assert [row["num_tokens"] for row in rows] == [3 + len(image.patch_codes) for image in images]
        assert [row["label"] for row in rows] == [image.label for image in images]
    files = {f"shards/{name}.json" for name in shards}
    files |= (
        {f"images/{number:09d}.{image_format}" for number in range(7)}
        if kind == "files"
        else {f"shards/{name}.tar" for name in shards}
    )
    assert set(content(output)) == files


@pytest.mark.parametrize("image_format", layout.IMAGE_FORMATS)
def test_images_are_without_loss(image_format: str) -> None:
    for number in range(3):
        encoded = encode_image(make_pixels(number), image_format)
        picture = Image.open(io.BytesIO(encoded))
        assert (picture.format or "").lower() == image_format
        assert np.array_equal(np.asarray(picture), make_pixels(number))


@pytest.mark.parametrize(("kind", "image_format"), KINDS)
def test_the_same_images_give_the_same_bytes(tmp_path: Path, kind: str, image_format: str) -> None:
    found = []
    for folder in ("one", "two"):
        url = str(tmp_path / folder)
        commit_shard(url, "000000", make_images(image_format), layout=kind, image_format=image_format)
        found.append(content(url))
        # Of a second attempt too, which changes nothing.
        commit_shard(url, "000000", make_images(image_format), layout=kind, image_format=image_format)
        assert content(url) == found[-1]
    assert found[0] == found[1] and found[0]
    other = str(tmp_path / "other")
    commit_shard(other, "000000", make_images(image_format, first=1), layout=kind, image_format=image_format)
    assert content(other)["shards/000000.json"] != found[0]["shards/000000.json"]


@pytest.mark.parametrize("image_format", layout.IMAGE_FORMATS)
def test_tars_open_with_the_webdataset_library(tmp_path: Path, image_format: str) -> None:
    images = make_images(image_format, count=7)
    commit_shard(str(tmp_path), "000003", images, layout="webdataset", image_format=image_format)
    path = tmp_path / "shards" / "000003.tar"
    opened: Any = compat.WebDataset(str(path), shardshuffle=False).decode("rgb8")
    samples = list(opened)
    assert [sample["__key__"] for sample in samples] == [f"{image.number:09d}" for image in images]
    for image, sample in zip(images, samples, strict=True):
        assert np.array_equal(sample[image_format], make_pixels(image.number))
        assert sample.get("cls") == image.label
        assert GeneratedImage.from_row(sample["json"], image.image) == image
        assert sample["json"] == image.row()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
    assert [member.name for member in members[:3]] == [
        f"000000000.{end}" for end in (image_format, "cls", "json")
    ]


def test_rows_are_json_types_and_tell_all_but_the_image() -> None:
    image = make_images()[4]
    row = json.loads(json.dumps(image.row()))
    assert row == {
        "number": 4,
        "seed": (1 << 62) + 4,
        "label": 4,
        "global_codes": [4, 7, 0],
        "patch_codes": [100, 101, 102, 103],
        "patch_positions": [0, 3, 6, 9],
        "num_tokens": 7,
    }


def test_only_a_list_of_rows_is_a_commit(output: str) -> None:
    images = make_images()
    for kind, name in (("files", "000000"), ("webdataset", "000001")):
        commit_shard(output, name, images, layout=kind, image_format="png")
    assert committed_shards(output) == {"000000", "000001"}
    for name in ("000000", "000001"):
        storage.remove(storage.join(output, "shards", f"{name}.json"))
    assert len(content(output)) == 6 and committed_shards(output) == set()


@pytest.mark.parametrize(
    ("kind", "file"), [("files", "images/000000001.png"), ("webdataset", "shards/000000.tar")]
)
def test_what_lies_there_before_a_commit_is_replaced(output: str, kind: str, file: str) -> None:
    storage.publish_bytes(b"half of something", storage.join(output, file), exclusive=True)
    commit_shard(output, "000000", make_images(), layout=kind, image_format="png")
    assert list(read_shard(output, "000000", layout=kind, image_format="png")) == make_images()


class Disconnecting(MemoryFileSystem):
    """A store in memory that takes so many more files, and then refuses."""

    protocol = "disconnecting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    num_left: ClassVar[int] = 0

    def mv(self, path1: str, path2: str, **options: Any) -> None:  # pyright: ignore
        if not Disconnecting.num_left:
            raise PermissionError("the store has gone")
        Disconnecting.num_left -= 1
        super().mv(path1, path2, **options)


@pytest.fixture
def disconnecting() -> Iterator[type[Disconnecting]]:
    fsspec.register_implementation("disconnecting", Disconnecting, clobber=True)
    yield Disconnecting
    Disconnecting.store.clear()
    Disconnecting.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(("kind", "num_files"), [("files", 6), ("webdataset", 2)])
def test_a_commit_that_ends_anywhere_is_none_and_the_next_one_completes_it(
    disconnecting: type[Disconnecting], kind: str, num_files: int
) -> None:
    images = make_images()
    disconnecting.num_left = 100
    commit_shard("disconnecting://whole", "000000", images, layout=kind, image_format="png")
    assert 100 - disconnecting.num_left == num_files
    for num_left in range(num_files):
        url = f"disconnecting://broken-{num_left}"
        disconnecting.num_left = num_left
        with pytest.raises(PermissionError, match="the store has gone"):
            commit_shard(url, "000000", images, layout=kind, image_format="png")
        assert len(content(url)) == num_left and committed_shards(url) == set()
        disconnecting.num_left = num_files
        commit_shard(url, "000000", images, layout=kind, image_format="png")
        assert committed_shards(url) == {"000000"}
        assert content(url) == content("disconnecting://whole")
