"""The one door: both formats from anywhere, fetched before they are parsed, and one way of regrouping."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tatok_pipe import storage
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.source import open_samples
from tatok_pipe.records import ImageSample, Quarantined

SAMPLES = [ImageSample(f"{i:08d}", bytes([i]) * 3000, i) for i in range(20)]
APART = [SAMPLES[0], SAMPLES[1], SAMPLES[2]]


def pack(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_of(samples: list[ImageSample], *, by_kind: bool = False) -> bytes:
    files = [
        (s.key, kind, s.image if kind == "jpg" else b"%d" % (s.label or 0))
        for s in samples
        for kind in ("jpg", "cls")
    ]
    if by_kind:
        files.sort(key=lambda file: file[1])
    return pack([(f"{key}.{kind}", data) for key, kind, data in files])


def parquet_of(samples: list[ImageSample]) -> bytes:
    buffer = io.BytesIO()
    image = pa.array([{"bytes": s.image} for s in samples])
    pq.write_table(pa.table({"image": image, "label": [s.label for s in samples]}), buffer, row_group_size=6)
    return buffer.getvalue()


def read(url: str, **options: Any) -> list[ImageSample | Quarantined]:
    with open_samples(url, info=storage.file_info(url), **options) as samples:
        return list(samples)


Put = Callable[[str, bytes], str]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    """`put(name, data)`: a file on the local disk or on S3; its URL."""
    if request.param == "local":
        return lambda name, data: str(tmp_path / name) if (tmp_path / name).write_bytes(data) else ""
    base = request.getfixturevalue("s3_url")

    def put(name: str, data: bytes) -> str:
        url = storage.join(base, name)
        storage.publish_bytes(data, url, exclusive=True)
        return url

    return put


def test_both_formats_give_the_same_samples(put: Put):
    assert read(put("a.tar", tar_of(SAMPLES))) == SAMPLES
    assert read(put("no-suffix", tar_of(SAMPLES)), part_bytes=1000, num_parallel=2) == SAMPLES
    assert read(put("a.parquet", parquet_of(SAMPLES))) == SAMPLES
    assert read(put("b.PARQUET", parquet_of(SAMPLES)), num_parallel=1, regroup=True) == SAMPLES


def test_interleaved_members(put: Put):
    url = put("a.tar", tar_of(APART, by_kind=True))
    with pytest.raises(InterleavedShard, match=r"a\.tar: the files of sample '00000000'"):
        read(url)
    assert read(url, regroup=True) == APART
    assert read(put("sorted.tar", tar_of(SAMPLES)), regroup=True) == SAMPLES


def test_a_wrong_suffix_is_explained(put: Put):
    with pytest.raises(ShardError, match=r"a\.parquet: not a Parquet file"):
        read(put("a.parquet", tar_of(SAMPLES)))
    with pytest.raises(ShardError, match=r"a\.tar: a Parquet file.*ends in \.parquet"):
        read(put("a.tar", parquet_of(SAMPLES)))


def test_size_limit_before_anything_is_read(put: Put):
    for name in ("a.tar", "a.parquet"):
        url = put(name, bytes(5000))
        with pytest.raises(
            ShardError, match=f"{name}: 5000 bytes, more than max_shard_bytes=4999.*raise max_shard_bytes"
        ):
            read(url, limits=ShardLimits(max_shard_bytes=4999))


@pytest.mark.s3
def test_a_changed_file_is_noticed(s3_url: str):
    for name, pack in (("a.tar", tar_of), ("a.parquet", parquet_of)):
        url = storage.join(s3_url, name)
        storage.publish_bytes(pack(SAMPLES), url, exclusive=True)
        info = storage.file_info(url)
        storage.publish_bytes(pack(SAMPLES[::-1]), url, exclusive=False)
        with (
            open_samples(url, info=info) as samples,
            pytest.raises(OSError, match="changed while it was read"),
        ):
            list(samples)


class CountingFileSystem(MemoryFileSystem):
    """`counting://`: a remote filesystem that counts the bytes it was asked for."""

    protocol = "counting"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    num_bytes = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start=start, end=end, **options)
        CountingFileSystem.num_bytes += len(data)
        return data


@pytest.fixture
def counting() -> Iterator[type[CountingFileSystem]]:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    CountingFileSystem.num_bytes = 0
    yield CountingFileSystem
    CountingFileSystem.store.clear()


def settle(counting: type[CountingFileSystem]) -> int:
    time.sleep(0.2)
    return counting.num_bytes


def test_entering_fetches_a_bounded_beginning(counting: type[CountingFileSystem]):
    filesystem, path = storage.open_filesystem("counting://a.tar")
    data = tar_of(SAMPLES * 10)
    filesystem.pipe_file(path, data)
    info = storage.file_info("counting://a.tar")
    with open_samples("counting://a.tar", info=info, part_bytes=1000, num_parallel=3) as samples:
        assert settle(counting) == 3000
        next(samples)
        assert 3000 < settle(counting) < len(data) // 2 or info.size_bytes < 1 << 20
    filesystem, path = storage.open_filesystem("counting://a.parquet")
    filesystem.pipe_file(path, parquet_of(SAMPLES))
    counting.num_bytes = 0
    info = storage.file_info("counting://a.parquet")
    with open_samples("counting://a.parquet", info=info) as samples:
        assert settle(counting) == info.size_bytes  # one block, where the footer is
        assert list(samples) == SAMPLES
        assert settle(counting) == info.size_bytes


def test_only_the_columns_of_a_sample_are_fetched(counting: type[CountingFileSystem]):
    rows = 40
    table = pa.table(
        {
            "mask": pa.array([bytes([i]) * (1 << 20) for i in range(rows)]),
            "image": pa.array([{"bytes": bytes([i]) * 1000} for i in range(rows)]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    filesystem, path = storage.open_filesystem("counting://a.parquet")
    filesystem.pipe_file(path, buffer.getvalue())
    assert len(buffer.getvalue()) > rows << 20
    assert len(read("counting://a.parquet")) == rows
    assert counting.num_bytes <= 3 * (4 << 20)  # the first block, and the last ones
