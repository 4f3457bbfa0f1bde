from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.pictures import PictureSource, plan_sources, read_pictures, to_images, to_pixels
from tatok_pipe.images.shard_errors import UnusableShard
from tests.pictures import Member, crop_members, write_shard


def test_every_shard_gives_its_share(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", crop_members(2, first=2 * number))
    assert [each.num_images for each in plan_sources(str(tmp_path), max_images=8)] == [3, 3, 2]
    assert [each.num_images for each in plan_sources(str(tmp_path), max_images=2)] == [1, 1]
    assert plan_sources(str(tmp_path), max_images=3)[1].size_bytes == (tmp_path / "1.tar").stat().st_size
    with pytest.raises(UserError, match="nothing"):
        plan_sources(str(tmp_path / "nothing.tar"), max_images=2)


def test_a_manifest_is_read_as_a_folder_is(tmp_path: Path) -> None:
    crops = [(name, data) for name, data in crop_members(12) if not name.endswith(".cls")]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in crops:
        (folder / name).write_bytes(data)
    rows = [{"url": name, "label": number} for number, (name, _) in enumerate(crops)]
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps(row | {"url": f"photos/{row['url']}"}) + "\n" for row in rows)
    )
    found = []
    for spec in (folder, tmp_path / "list.jsonl"):
        sources = plan_sources(str(spec), max_images=6, list_url=f"{tmp_path}/{spec.stem}.parquet")
        assert [each.num_images for each in sources] == [3, 3]
        found.append([each for source in sources for each in read_pictures(source, image_size=32)])
    assert [each.key for each in found[1]] == [f"photos/{each.key}" for each in found[0]]
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(*found, strict=True))
    by_key = {name.rpartition(".")[0]: number for number, (name, _) in enumerate(crops)}
    assert [each.label for each in found[1]] == [by_key[each.key] for each in found[0]]


def test_pictures_in_order_with_their_kinds_and_without_what_does_not_decode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = crop_members(3)
    members[2:2] = [("broken.jpg", b"no picture"), ("broken.json", b'{"kind": "text"}')]
    members += [("coffee_0000.json", b"not json")]  # of the first image, after all others
    plain = write_shard(tmp_path / "plain.tar", members[:-1])
    found = read_pictures(PictureSource(plain, 3), image_size=32)
    assert [each.key for each in found] == ["coffee_0000", "coffee_0001", "coffee_0002"]
    assert "broken left out" in caplog.text
    assert {each.pixels.shape for each in found} == {(32, 32, 3)} and found[0].label == 4
    assert [each.key for each in read_pictures(PictureSource(plain, 2), image_size=32)] == [
        "coffee_0000", "coffee_0001",
    ]  # fmt: skip
    marked: list[Member] = [("a.png", crop_members(1)[0][1]), ("a.json", b'{"kind": "texture"}')]
    assert read_pictures(
        PictureSource(write_shard(tmp_path / "marked.tar", marked), 5), image_size=16
    )[0].kind == "texture"  # fmt: skip
    mixed = write_shard(tmp_path / "mixed.tar", members)  # the files of a sample do not follow one another
    again = read_pictures(PictureSource(mixed, 3), image_size=32)
    assert [each.key for each in again] == [each.key for each in found]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(again, found, strict=True))


def test_labels_that_are_names_are_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [data for name, data in crop_members(3) if not name.endswith(".cls")]
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": images, "label": [None, "cat", "dog"]}), path)
    found = read_pictures(PictureSource(path, 3), image_size=16)
    assert [(each.key, each.label) for each in found] == [(f"{i:08d}", None) for i in range(3)]
    assert "column label: string holds 'cat'" in caplog.text
    pq.write_table(pa.table({"image": ["https://a/b.jpg"]}), path)
    with pytest.raises(UnusableShard, match="no column of images"):
        read_pictures(PictureSource(path, 3), image_size=16)


def test_pixels_and_images_are_inverse(tmp_path: Path) -> None:
    found = read_pictures(PictureSource(write_shard(tmp_path / "a.tar", crop_members(2)), 2), image_size=16)
    images = to_images(found)
    assert images.shape == (2, 3, 16, 16) and 0 <= float(images.min()) < float(images.max()) <= 1
    assert np.array_equal(to_pixels(images[1]), found[1].pixels)
