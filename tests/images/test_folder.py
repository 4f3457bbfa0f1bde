"""Folders of loose images as parts: which files are in which part, what a sample is made of, what changes are seen."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import (
    ListPlace,
    class_names_of,
    find_image_shards,
)
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import DEFAULT_LIMITS
from tatok_pipe.images.loose.image_list import load_list
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import LastingShardError
from tatok_pipe.images.source import hash_shard, open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import ListedPart, ShardFile, parse_part
from tatok_pipe.tokens.format import token_shard_name
from tests.pictures import crop_members


def write(folder: Path, *names: str, data: bytes = b"an image") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def plan(folder: Path | str, place: Path, *, size: int = 2) -> list[ShardFile]:
    where = ListPlace(str(place / "_input.parquet"), images_per_part=size)
    return find_image_shards(str(folder), option="input.shards", place=where)


def read(shard: ShardFile, **options: object) -> list[ImageSample | Quarantined]:
    with open_samples(shard.url, info=shard_info(shard.url), **options) as samples:  # type: ignore[arg-type]
        return list(samples)


def keys(shards: list[ShardFile]) -> list[list[str]]:
    return [[sample.key for sample in read(shard)] for shard in shards]


def labels(shards: list[ShardFile], **options: object) -> dict[str, int | None]:
    samples = [sample for shard in shards for sample in read(shard, **options)]
    return {sample.key: sample.label for sample in samples if isinstance(sample, ImageSample)}


def test_parts_are_of_sorted_paths(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "b/2.jpg", "a/1.PNG", "a/10.jpg", "b/_DSC1.tif", "c/x.y.z.webp")
    shards = plan(photos, tmp_path)
    assert keys(shards) == [["a/1", "a/10"], ["b/2", "b/_DSC1"], ["c/x.y.z"]]
    assert [storage.redact(shard.url) for shard in shards] == [
        f"{photos}#{number:06d}" for number in range(3)
    ]
    assert [storage.canonical_url(shard.url) for shard in shards] == [f"{photos}#{n:06d}" for n in range(3)]
    assert storage.parse_part(shards[0].url) is not None and class_names_of(shards[0], DEFAULT_LIMITS) == (
        "a",
        "b",
        "c",
    )
    assert token_shard_name(shards[0].url).startswith("photos-000000-")
    assert [shard.size_bytes for shard in shards] == [16, 16, 8]


def test_a_relative_folder_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write(tmp_path / "photos", "1.jpg", "2.jpg")
    monkeypatch.chdir(tmp_path)
    for spec in ("photos", "photos/", "./photos", f"file://{photos}"):
        (shard,) = plan(spec, tmp_path / "out")
        assert storage.canonical_url(shard.url) == f"{photos}#000000" and len(read(shard)) == 2


def test_what_is_in_a_sample(tmp_path: Path) -> None:
    members = crop_members(2)
    folder = tmp_path / "photos"
    for name, data in members:
        write(folder, name, data=data)
    stem = members[0][0].rpartition(".")[0]
    write(folder, f"{stem}.txt", data=b"a caption")
    write(
        folder,
        "readme.txt",
        "Thumbs.db",
        ".hidden.jpg",
        "__MACOSX/x.jpg",
        "@eaDir/1.jpg",
        ".git/y.png",
        "metadata.csv",
    )
    first, second = read(plan(folder, tmp_path)[0])
    assert isinstance(first, ImageSample) and isinstance(second, ImageSample)
    assert (first.key, first.image, first.caption) == (stem, members[0][1], "a caption")
    assert (first.label, second.label) == (int(members[1][1]), int(members[3][1]))
    assert second.caption is None


def test_a_class_folder_is_the_label_whatever_files_say(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "cat/1.jpg", "dog/deep/er/2.jpg")
    write(photos, "cat/1.cls", data=b"7")
    write(photos, "cat/1.json", data=b'{"label": 9}')
    shards = plan(photos, tmp_path)
    assert labels(shards) == {"cat/1": 0, "dog/deep/er/2": 1}
    assert labels(shards, class_names=("zebra", "dog", "cat")) == {"cat/1": 2, "dog/deep/er/2": 1}
    with pytest.raises(LastingShardError, match="class 'cat' is none of the 1 that are known"):
        read(shards[0], class_names=("dog",))


def test_folders_whose_names_are_none_have_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = plan(write(tmp_path / "photos", "two\nlines/1.jpg", "b/2.jpg"), tmp_path)
    assert set(labels(shards).values()) == {None} and class_names_of(shards[0], DEFAULT_LIMITS) == ()
    assert "2 folders, which are no classes" in caplog.text


def test_images_beside_folders_have_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = plan(write(tmp_path / "photos", "cat/1.jpg", "2.jpg"), tmp_path)
    assert labels(shards) == {"2": None, "cat/1": None}
    assert class_names_of(shards[0], DEFAULT_LIMITS) == ()
    assert "some images are in folders and some beside these" in caplog.text


@pytest.mark.parametrize(
    "names", [("train/a/1.jpg", "val/a/1.jpg"), ("Test/1.jpg",), ("train/1.jpg", "valid/2.png")]
)
def test_folders_of_a_split_are_asked_about(tmp_path: Path, names: tuple[str, ...]) -> None:
    photos = write(tmp_path / "photos", *names)
    tops = sorted({name.partition("/")[0] for name in names})
    with pytest.raises(UserError) as caught:
        plan(photos, tmp_path)
    assert str(caught.value) == (
        f"input.shards={photos}: has the folders {', '.join(tops)}; give one of them, as in {photos}/{tops[0]}"
    )


def test_two_images_of_one_name_are_not_guessed_at(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "a.jpg", "a.png", "a-1.jpg", "a.b.jpg", "heic.heic")
    samples = {sample.key: sample for shard in plan(photos, tmp_path) for sample in read(shard)}
    assert list(samples) == ["a", "a-1", "a.b", "heic"]
    two, unread = samples["a"], samples["heic"]
    assert isinstance(two, Quarantined) and two.error == "AmbiguousImage"
    assert isinstance(unread, Quarantined) and unread.error == "UnsupportedFormat"
    assert isinstance(samples["a.b"], ImageSample)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "a b#1 %20?.jpg")
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.jpg")).write_bytes(b"an image")
    (shard,) = plan(photos, tmp_path)
    assert keys([shard]) == [["a b#1 %20?", "\\xff"]]
    assert shard_info(shard.url).size_bytes == 16
    os.makedirs(os.fsencode(tmp_path) + b"/classes/\xff")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/classes/\xff/1.jpg")).write_bytes(b"an image")
    (shard,) = plan(tmp_path / "classes", tmp_path / "out")
    assert labels([shard]) == {"\\xff/1": 0} and class_names_of(shard, DEFAULT_LIMITS) == ("\\xff",)


def test_a_grown_folder_keeps_its_parts(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "b/1.jpg", "b/2.jpg", "b/3.jpg")
    before = plan(photos, tmp_path)
    stamp = (tmp_path / "_input.parquet").stat().st_mtime_ns
    assert plan(photos, tmp_path) == before
    assert (tmp_path / "_input.parquet").stat().st_mtime_ns == stamp  # nothing new, nothing written
    write(photos, "a/0.jpg", "b/4.jpg", "b/0.jpg")
    after = plan(photos, tmp_path)
    assert keys(after) == [["b/1", "b/2"], ["b/3"], ["a/0", "b/0"], ["b/4"]]
    assert after[:2] == before
    write(photos, "b/3.txt", data=b"a caption")  # belongs to what is there
    assert [shard.size_bytes for shard in plan(photos, tmp_path)] == [16, 17, 16, 8]
    (photos / "b/3.jpg").unlink()
    (photos / "b/3.txt").unlink()
    assert keys(plan(photos, tmp_path)) == [["b/1", "b/2"], ["a/0", "b/0"], ["b/4"]]
    write(photos, "z/9.jpg")  # the number of a part that is gone is not given again
    assert parse_part(plan(photos, tmp_path)[-1].url) == ListedPart(
        str(photos), 4, str(tmp_path / "_input.parquet")
    )
    (photos / "b/4.jpg").unlink()
    (photos / "z/9.jpg").unlink()
    plan(photos, tmp_path)
    write(photos, "y.jpg")
    found = parse_part(plan(photos, tmp_path)[-1].url)
    assert found is not None and found.number == 5


def test_the_list_is_the_same_for_the_same_folder(tmp_path: Path) -> None:
    for name in ("x", "y"):
        photos = write(tmp_path / name / "photos", *(f"{number}.jpg" for number in range(5)))
        os.utime(photos / "3.jpg", ns=(1, 1 if name == "x" else 2))
        os.symlink(photos, tmp_path / f"link-{name}")
    (tmp_path / "x" / "photos" / "3.jpg").touch()
    first = plan(tmp_path / "x" / "photos", tmp_path / "a")
    second = plan(tmp_path / "x" / "photos", tmp_path / "b")
    assert (tmp_path / "a/_input.parquet").read_bytes() == (tmp_path / "b/_input.parquet").read_bytes()
    assert [token_shard_name(shard.url) for shard in first] == [
        token_shard_name(shard.url) for shard in second
    ]


def test_a_list_of_another_folder_is_refused(tmp_path: Path) -> None:
    plan(write(tmp_path / "a", "1.jpg"), tmp_path)
    with pytest.raises(UserError, match=f"what is there was begun from {tmp_path}/a; give another output"):
        plan(write(tmp_path / "b", "1.jpg"), tmp_path)
    (tmp_path / "_input.parquet").write_bytes(b"something else")
    with pytest.raises(UserError, match="_input.parquet: no list of images .*; remove it"):
        plan(tmp_path / "a", tmp_path)


def test_versions_of_a_part(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "1.jpg", "2.jpg")
    past = time.time_ns() - 10**12
    for name in ("1.jpg", "2.jpg"):
        os.utime(photos / name, ns=(past, past))
    (shard,) = plan(photos, tmp_path)
    expected = hashlib.sha256(b"1.jpg\0008\0an image2.jpg\0008\0an image").hexdigest()
    assert hash_shard(shard.url) == expected
    hasher = hashlib.sha256()
    read(shard, hasher=hasher)
    assert hasher.hexdigest() == expected
    info = shard_info(shard.url)
    assert (info.size_bytes, info.etag, info.mtime_ns) == (16, "", shard.mtime_ns)
    assert 0 < shard.mtime_ns < time.time_ns() - 2 * 10**9
    os.utime(photos / "1.jpg", ns=(past, past - 10**10))  # an older file in its place
    assert shard_info(shard.url).mtime_ns not in (0, shard.mtime_ns)
    write(photos, "1.jpg", data=b"AN IMAGE")
    assert hash_shard(shard.url) != expected
    assert shard_info(shard.url).mtime_ns > time.time_ns() - 10**11  # too fresh to be a hint
    write(photos, "1.jpg", data=b"another image")
    with (
        pytest.raises(OSError, match="photos#000000: changed before it was read"),
        open_samples(shard.url, info=info),
    ):
        pass
    with pytest.raises(OSError, match=r"photos/1\.jpg: changed while it was read: 8 bytes before, 13 after"):
        read(shard)
    (photos / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        shard_info(shard.url)


def test_a_part_that_is_in_no_list(tmp_path: Path) -> None:
    (shard,) = plan(write(tmp_path / "photos", "1.jpg"), tmp_path)
    other = str(ListedPart(str(tmp_path / "photos"), 7, str(tmp_path / "_input.parquet")))
    with pytest.raises(OSError, match="photos#000007: not in the list of its source any more"):
        shard_info(other)
    (tmp_path / "_input.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        shard_info(shard.url)


def test_broken_links_are_told_before_anything_is_read(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "1.jpg")
    os.symlink("nowhere", photos / "note")  # of no image
    assert len(plan(photos, tmp_path)) == 1
    os.symlink("nowhere", photos / "2.jpg")
    with pytest.raises(UserError, match="input.shards: .*2.jpg is a symbolic link to nowhere"):
        plan(photos, tmp_path)


def test_a_folder_in_memory(tmp_path: Path) -> None:
    url = "memory://bucket-of-loose/photos"
    for name in ("cat/1.jpg", "dog/2.jpg", "dog/2.txt"):
        storage.publish_bytes(b"an image", f"{url}/{name}", exclusive=False)
    (shard,) = plan(url, tmp_path)
    assert storage.canonical_url(shard.url) == f"{storage.canonical_url(url)}#000000"
    assert labels([shard]) == {"cat/1": 0, "dog/2": 1}
    assert shard_info(shard.url) == storage.SourceInfo(24)


def test_where_nothing_may_be_written_a_folder_is_refused(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "1.jpg")
    place = ListPlace(str(tmp_path / "_input.parquet"), refusal="no, thank you")
    with pytest.raises(UserError, match="no, thank you"):
        find_image_shards(str(photos), option="input.shards", place=place)
    with pytest.raises(UserError, match="1 × a loose image"):
        find_image_shards(str(photos), option="input.shards")
    assert not (tmp_path / "_input.parquet").exists()
    shards = find_image_shards(
        str(photos), option="input.shards", place=ListPlace(str(tmp_path / "l"), 2, "")
    )
    assert len(shards) == 1 and not (tmp_path / "l").exists()
    assert load_list(str(tmp_path / "l")) is None


def test_oversized_files_are_quarantined_unread(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "1.jpg", data=bytes(100))
    (shard,) = plan(photos, tmp_path)
    hasher = hashlib.sha256()
    (sample,) = read(
        shard, limits=replace(DEFAULT_LIMITS, max_member_bytes=99), notices=Notices(), hasher=hasher
    )
    assert isinstance(sample, Quarantined) and sample.error == "TooManyBytes"
    assert hasher.hexdigest() == hash_shard(shard.url)


@pytest.mark.parametrize("url", ["/a/b#000001", "/a#123456/b#000001", "s3://bucket/a b#000012"])
@pytest.mark.parametrize("list_url", ["/out/_input.parquet", "s3://user@out/a b%20c#1", "file:///x?y=1&z=%"])
def test_parts_are_written_and_parsed(url: str, list_url: str) -> None:
    folder, _, number = url.rpartition("#")
    part = ListedPart(folder, int(number), list_url)
    assert parse_part(str(part)) == part and part.name == url
    assert parse_part(url) is None
    assert storage.redact(f"error in {part}, and more").startswith(f"error in {url}")


@pytest.mark.s3
def test_a_folder_on_s3(s3_url: str) -> None:
    url = storage.join(s3_url, "pho tos")
    for name in ("cat/1.jpg", "dog/2 3.jpg", "dog/2 3.txt"):
        storage.publish_bytes(b"an image", storage.join(url, name), exclusive=False)
    place = ListPlace(storage.join(s3_url, "out/_input.parquet"), images_per_part=1)
    first, second = find_image_shards(f"{url}/", option="input.shards", place=place)
    assert storage.canonical_url(first.url) == f"{storage.canonical_url(url)}#000000"
    assert labels([first, second]) == {"cat/1": 0, "dog/2 3": 1}
    assert len(first.etag) == 32 and shard_info(second.url) == storage.SourceInfo(16, second.etag)
    # Another image of the same size is another version, as the store's ETag tells.
    storage.publish_bytes(b"AN IMAGE", storage.join(url, "cat/1.jpg"), exclusive=False)
    changed, same = find_image_shards(url, option="input.shards", place=place)
    assert changed.etag != first.etag and same == second
    storage.publish_bytes(b"longer than it was", storage.join(url, "cat/1.jpg"), exclusive=False)
    with pytest.raises(OSError, match="cat/1.jpg: changed while it was read: 8 bytes before, 18 after"):
        read(changed)
