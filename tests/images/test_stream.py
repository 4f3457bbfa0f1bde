"""The training stream: every image once an epoch, the same order always, exact resumption, disjoint ranks."""

from __future__ import annotations

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tatok_pipe.errors import UserError
from tatok_pipe.images.stream import TrainingImages


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three shards of five flat images; the red value tells which image it is. One member is no image."""
    folder = tmp_path_factory.mktemp("stream")
    urls = []
    for shard in range(3):
        path = folder / f"{shard}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(5):
                encoded = io.BytesIO()
                Image.new("RGB", (20, 24), (10 * (5 * shard + i), 0, 0)).save(encoded, "PNG")
                data = encoded.getvalue() if (shard, i) != (1, 2) else b"no image"
                info = tarfile.TarInfo(f"{shard}-{i}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        urls.append(str(path))
    return urls


def stream(shards: list[str], **options: float) -> TrainingImages:
    return TrainingImages(
        shards, **{"image_size": 16, "batch_size": 4, "seed": 7, "buffer_images": 6, **options}
    )  # type: ignore[arg-type]


def names(batches: list[np.ndarray]) -> list[int]:
    return [int(image[0, 0, 0]) // 10 for batch in batches for image in batch]


def test_every_image_comes_once_an_epoch(shards: list[str]) -> None:
    # 14 readable images an epoch, so 7 batches of 4 are two epochs.
    seen = names(list(islice(stream(shards), 7)))
    readable = sorted(set(range(15)) - {7})
    assert sorted(seen[:14]) == readable
    assert sorted(seen[14:]) == readable
    assert seen[:14] != seen[14:]
    assert names(list(islice(stream(shards, seed=8), 7))) != seen


def test_a_share_of_the_images_is_one_colour(shards: list[str]) -> None:
    """The rest are what they would have been."""
    without = np.concatenate(list(islice(stream(shards), 30)))
    some = np.concatenate(list(islice(stream(shards, plain_share=0.25), 30)))
    is_plain = (some != without).any(axis=(1, 2, 3))
    assert 15 <= is_plain.sum() <= 45
    for image in some[is_plain]:
        assert (image == image[0, 0]).all()
    assert len({tuple(image[0, 0]) for image in some[is_plain]}) == is_plain.sum()
    assert np.array_equal(np.concatenate(list(islice(stream(shards, plain_share=0.25), 30))), some)


def test_order_and_pixels_do_not_depend_on_threads(shards: list[str]) -> None:
    first = list(islice(stream(shards, num_threads=1), 9))
    second = list(islice(stream(shards, num_threads=5), 9))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == (4, 16, 16, 3) and first[0].dtype == np.uint8


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6])
def test_a_resumed_stream_goes_on_where_it_was(shards: list[str], done: int) -> None:
    expected = list(islice(stream(shards), 9))
    first = stream(shards)
    batches = iter(first)
    got = [next(batches) for _ in range(done)]
    second = stream(shards)
    second.load_state_dict(first.state_dict())
    got += list(islice(second, 9 - done))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_ranks_share_an_epoch_without_overlap(shards: list[str]) -> None:
    seen = [names(list(islice(stream(shards, batch_size=1, rank=rank, num_ranks=3), 4))) for rank in range(3)]
    flat = [name for rank in seen for name in rank]
    assert len(set(flat)) == len(flat) == 12


def test_too_few_shards_and_no_images_are_user_errors(shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 image shards for 4 workers"):
        stream(shards, rank=0, num_ranks=4)
    empty = tmp_path / "empty.tar"
    tarfile.open(empty, "w").close()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shards[0]).read_bytes()[:1500])
    with pytest.raises(UserError, match=r"cut\.tar.*write or copy the shard again"):
        next(iter(stream([str(cut)])))
    broken = tmp_path / "broken.tar"
    with tarfile.open(broken, "w") as tar:
        header = tarfile.TarInfo("a.jpg")
        header.size = 8
        tar.addfile(header, io.BytesIO(b"no image"))
    for none in (empty, broken):
        with pytest.raises(UserError, match="no readable image"):
            next(iter(stream([str(none)])))


def test_parquet_and_interleaved_shards_give_each_image_once(shards: list[str], tmp_path: Path) -> None:
    with tarfile.open(shards[0]) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    labels = [(f"{name[:-4]}.cls", b"1") for name, _ in members]
    # The first label comes early, as a sample without image; the others behind all images.
    apart = tmp_path / "apart.tar"
    with tarfile.open(apart, "w") as tar:
        for name, data in [labels[0], members[1], members[0], *members[2:], *labels[1:]]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"image": [{"bytes": data} for _, data in members]}), rows)
    for url in (apart, rows):
        once = names(list(islice(stream([str(url)], batch_size=1), 10)))
        assert sorted(once[:5]) == sorted(once[5:]) == [0, 1, 2, 3, 4]
    resumed = stream([str(apart)], batch_size=1)
    resumed.load_state_dict({"epoch": 0, "offset": 3})
    expected = names(list(islice(stream([str(apart)], batch_size=1), 10)))
    assert names(list(islice(resumed, 7))) == expected[3:]
