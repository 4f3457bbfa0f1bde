"""A tar of tars as parts: which shard is which tar, what its samples are called, what changes are seen, what is
refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards
from tatok_pipe.errors import UserError
from tatok_pipe.images.fields import MAX_KEY_CHARACTERS
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.loose.image_list import read_part
from tatok_pipe.images.shard_errors import InterleavedShard, LastingShardError, ShardError
from tatok_pipe.images.source import hash_shard, open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import ShardFile, parse_part
from tatok_pipe.tokens.format import token_shard_name
from tests.storage.web import WebServer

Members = Mapping[str, bytes]


def tar(members: Members, *, format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            if name.endswith("/"):
                header.type = tarfile.DIRTYPE
            archive.addfile(header, io.BytesIO(data))
    return sink.getvalue()


def write(path: Path, members: Members, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members, **options))
    return path


def plan(spec: Path | str, place: Path, **options: Any) -> list[ShardFile]:
    where = ListPlace(str(place / "_input.parquet"), **options)
    return find_image_shards(str(spec), option="input.shards", place=where)


def read(shard: ShardFile, **options: Any) -> list[ImageSample | Quarantined]:
    with open_samples(shard.url, info=shard_info(shard.url), **options) as samples:
        return list(samples)


def images(shards: list[ShardFile], **options: Any) -> dict[str, tuple[int | None, bytes]]:
    samples = [sample for shard in shards for sample in read(shard, **options)]
    assert all(isinstance(sample, ImageSample) for sample in samples)
    return {each.key: (each.label, each.image) for each in samples if isinstance(each, ImageSample)}


def refusal(spec: Path | str, place: Path, **options: Any) -> str:
    """The one line, without the name of the file. Nothing is written."""
    with pytest.raises(UserError) as caught:
        plan(spec, place, **options)
    message = str(caught.value)
    assert "\n" not in message and not (place / "_input.parquet").exists()
    assert message.startswith(f"input.shards={spec}: ")
    return message.removeprefix(f"input.shards={spec}: ")


CATS, DOGS = tar({"2.JPEG": b"cat 2", "10.JPEG": b"cat 10"}), tar({"1.JPEG": b"dog 1"})


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_is_a_tar_within_it(tmp_path: Path, format: int) -> None:
    outer = write(tmp_path / "train.tar", {"n02.tar": DOGS, "n01.tar": CATS}, format=format)
    shards = plan(outer, tmp_path)
    assert [storage.canonical_url(shard.url) for shard in shards] == [f"{outer}#{n:06d}" for n in range(2)]
    assert [shard.size_bytes for shard in shards] == [len(CATS), len(DOGS)]
    assert class_names_of(shards[0], DEFAULT_LIMITS) == ("n01", "n02")
    assert token_shard_name(shards[1].url).startswith("train-000001-")
    assert images(shards) == {"n01/2": (0, b"cat 2"), "n01/10": (0, b"cat 10"), "n02/1": (1, b"dog 1")}
    assert images(shards[1:], class_names=("n02", "n01")) == {"n02/1": (0, b"dog 1")}
    assert images(shards[1:], limits=ShardLimits(ignore=["label"])) == {"n02/1": (None, b"dog 1")}
    with pytest.raises(LastingShardError, match=r"#000001: class 'n02' is none of the 1 that are known"):
        read(shards[1], class_names=("n01",))


def test_the_places_are_those_that_tarfile_finds(tmp_path: Path) -> None:
    """Long names, names that are no ASCII and other headers stand between the inner tars."""
    random_bytes = random.Random(0).randbytes
    members = {
        "a" * 150 + ".tar": tar({"1.jpg": random_bytes(700)}),
        "ä/ö.tar": tar({"1.jpg": random_bytes(1)}),
        "folder/": b"",
        "folder/b.TAR": tar({"1.jpg": random_bytes(2000)}),
    }
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        outer = write(tmp_path / f"{format}.tar", members, format=format)
        shards = plan(outer, tmp_path / str(format))
        with tarfile.open(outer) as archive:
            wanted = {each.name: (each.offset_data, each.size) for each in archive if each.isfile()}
        found = {}
        for shard in shards:
            assert (part := parse_part(shard.url)) is not None
            (file,) = read_part(part).files
            found[file.path] = (file.offset, file.size_bytes)
            assert len(read(shard)) == 1
        assert found == wanted
    assert class_names_of(shards[0], DEFAULT_LIMITS) == ("a" * 150, "b", "ö")


def test_an_archive_of_gnu_tar(tmp_path: Path) -> None:
    for name, data in (("n1.tar", CATS), ("n2.tar", DOGS)):
        (tmp_path / name).write_bytes(data)
    subprocess.run(["tar", "cf", "outer.tar", "./n1.tar", "./n2.tar"], cwd=tmp_path, check=True)
    assert set(images(plan(tmp_path / "outer.tar", tmp_path / "out"))) == {"n1/2", "n1/10", "n2/1"}


def test_the_hash_is_that_of_the_inner_tar(tmp_path: Path) -> None:
    outer = write(tmp_path / "train.tar", {"n01.tar": CATS, "n02.tar": DOGS})
    before = {shard.url: hash_shard(shard.url) for shard in plan(outer, tmp_path)}
    for url, expected in before.items():
        hasher = hashlib.sha256()
        with open_samples(url, info=shard_info(url), hasher=hasher) as samples:
            assert list(samples)
        assert hasher.hexdigest() == expected
    # One that is elsewhere now, behind another, is the same.
    write(outer, {"a.tar": DOGS, "n01.tar": CATS, "n02.tar": tar({"1.JPEG": b"DOG 1"})})
    after = {shard.url: hash_shard(shard.url) for shard in plan(outer, tmp_path)}
    same = [url for url in before if after[url] == before[url]]
    assert len(after) == 3 and len(set(after.values())) == 3
    assert [storage.canonical_url(url)[-1] for url in same] == ["0"]


def test_what_grows(tmp_path: Path) -> None:
    outer = write(tmp_path / "train.tar", {"n02.tar": CATS})
    first = plan(outer, tmp_path)
    write(outer, {"n01.tar": DOGS, "n02.tar": CATS})
    with pytest.raises(OSError, match=r"#000000: n02.tar is not where it was; the file has changed"):
        read(first[0])
    shards = plan(outer, tmp_path)
    assert [shard.url for shard in shards[:1]] == [first[0].url]
    # A number of a shard stays; which number the class has is what the dataset knows of it.
    assert set(images(shards[:1], class_names=("n02", "n01"))) == {"n02/2", "n02/10"}
    assert images(shards[1:], class_names=("n02", "n01")) == {"n01/1": (1, b"dog 1")}
    write(outer, {"n01.tar": DOGS})
    assert [shard.url for shard in plan(outer, tmp_path)] == [shards[1].url]


def test_what_is_in_an_inner_tar(tmp_path: Path) -> None:
    """Captions, broken members, members in any order: as in any tar, but for labels."""
    inner = tar({"a.jpg": b"image", "a.txt": b"caption", "a.cls": b"7", "b.txt": b"alone"})
    (shard,) = plan(write(tmp_path / "t.tar", {"cat.tar": inner}), tmp_path)
    first, second = read(shard)
    assert isinstance(first, ImageSample) and isinstance(second, Quarantined)
    assert (first.key, first.label, first.caption) == ("cat/a", 0, "caption")
    assert (second.key, second.error) == ("cat/b", "NoImage")
    apart = tar({"a.jpg": b"image", "b.jpg": b"image", "a.txt": b"caption"})
    (shard,) = plan(write(tmp_path / "u.tar", {"cat.tar": apart}), tmp_path / "u")
    with pytest.raises(InterleavedShard):
        read(shard)
    assert [sample.key for sample in read(shard, regroup=True)] == ["cat/a", "cat/b"]
    long = tar({"k" * (MAX_KEY_CHARACTERS - 50) + ".jpg": b"image"})
    (shard,) = plan(write(tmp_path / "v.tar", {"c" * 90 + ".tar": long}), tmp_path / "v")
    (sample,) = read(shard)
    assert isinstance(sample, Quarantined) and sample.error == "LongKey"
    broken = write(tmp_path / "w.tar", {"a.tar": CATS[:700], "b.tar": DOGS})
    cut, whole = plan(broken, tmp_path / "w")
    with pytest.raises(ShardError, match=r"w.tar#000000 \(a.tar\): cut off at byte 700"):
        read(cut)
    assert len(read(whole)) == 1


def test_compressed_inner_tars(tmp_path: Path) -> None:
    outer = write(tmp_path / "t.tar", {"cat.tar.gz": gzip.compress(CATS), "dog.tgz": gzip.compress(DOGS)})
    shards = plan(outer, tmp_path)
    assert class_names_of(shards[0], DEFAULT_LIMITS) == ("cat", "dog")
    assert images(shards)["dog/1"] == (1, b"dog 1")
    hasher = hashlib.sha256()
    with open_samples(shards[0].url, info=shard_info(shards[0].url), hasher=hasher) as samples:
        assert list(samples)
    assert hasher.hexdigest() == hash_shard(shards[0].url)


def test_what_lies_beside_the_tars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outer = write(tmp_path / "t.tar", {"readme.txt": b"text", "folder/": b"", "a.tar": CATS})
    assert len(plan(outer, tmp_path)) == 1
    assert f"{outer}: 1 members beside the 1 tars in it are not read" in caplog.text


EMPTY = tar({})


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"a.tar": CATS, "b.jpg": b"b"}, "holds tars, and the image b.jpg beside them; pack images and tars apart"),
        ({"a.tar": CATS, "x/a.tar.gz": b"b"}, "a.tar and x/a.tar.gz are both class 'a'; give each a name of its own"),
        ({"a.tar": CATS, "b.tar": b""}, "b.tar in it has 0 bytes; pack it again, or leave it out"),
        ({"a.tar": CATS, "b.tar": b"x" * 512}, "b.tar in it: not a tar archive: it begins with b'xxxx"),
        (
            {"a.tar": tar({"n01.tar": CATS})},
            "a.tar in it holds tars as well, first n01.tar; unpack the outer one, and give those in it one at a time",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, members: Members, told: str) -> None:
    assert refusal(write(tmp_path / "t.tar", members), tmp_path).startswith(told)


def test_an_inner_tar_without_images_is_a_class(tmp_path: Path) -> None:
    """Numbers are those of the names of all tars, whatever is in them."""
    shards = plan(write(tmp_path / "t.tar", {"a.tar": EMPTY, "b.tar": DOGS}), tmp_path)
    assert images(shards) == {"b/1": (1, b"dog 1")}


def test_whole_files_that_are_refused(tmp_path: Path) -> None:
    outer = tar({"a.tar": CATS, "b.tar": DOGS})
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(outer))
    assert refusal(tmp_path / "t.tar.gz", tmp_path).startswith(
        "a tar of tars, compressed as a whole; decompress it"
    )
    (tmp_path / "cut.tar").write_bytes(outer[: -len(DOGS)])
    assert "before the end of a member; write or copy the shard again" in refusal(
        tmp_path / "cut.tar", tmp_path
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.tar").write_bytes(outer)
    (tmp_path / "more/b.tar").write_bytes(DOGS)
    with pytest.raises(
        UserError, match=r"more/a.tar: a tar of tars, and 1 more files are given; expected it alone"
    ):
        plan(tmp_path / "more", tmp_path)
    with pytest.raises(UserError, match="more/a.tar: a tar of tars, expected image shards"):
        find_image_shards(f"{tmp_path}/more/a.tar", option="input.shards")
    with pytest.raises(UserError, match="no, thank you"):
        plan(tmp_path / "more/a.tar", tmp_path, refusal="no, thank you")


def test_a_limit_is_that_of_an_inner_tar(tmp_path: Path) -> None:
    """The whole of ImageNet's is beyond the limit of a shard."""
    outer = write(tmp_path / "t.tar", {"a.tar": CATS, "b.tar": DOGS})
    limits = ShardLimits(max_shard_bytes=len(CATS))
    shards = plan(outer, tmp_path, limits=limits)
    assert outer.stat().st_size > len(CATS) and len(images(shards, limits=limits)) == 3


def test_a_web_server_gives_the_bytes_of_a_shard_alone(tmp_path: Path) -> None:
    big = {
        name: tar({"1.jpg": random.Random(name).randbytes(1 << 20)}) for name in ("a.tar", "b.tar", "c.tar")
    }
    with WebServer({"/t.tar": tar(big)}) as server:
        shards = plan(f"{server.url}/t.tar", tmp_path)
        planned = server.bytes_sent["GET"]
        assert planned < 1 << 20
        assert images(shards[1:2])["b/1"][1] == random.Random("b.tar").randbytes(1 << 20)
        assert server.bytes_sent["GET"] - planned < len(big["b.tar"]) + (64 << 10)
    with WebServer({"/t.tar": tar(big)}, ranges=False) as server:
        told = refusal(f"{server.url}/t.tar", tmp_path / "none")
        assert told == "a tar of tars, on a server that gives no byte ranges; download it first"
