"""The memory of a process does not grow with the shards that it tokenizes: whatever their size, format or place."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tatok_pipe import storage

from .measured import tokenize_measured
from .pictures import encode, small_tokenizer

MB = 1_000_000
# What may be held of a shard beside what every shard takes: fetched parts, encoded and decoded images, and what
# the allocator has not given back. A shard of which a copy were held would grow by its size.
READ_AHEAD_BYTES = 8 * (16 << 20)
SPREAD_BYTES = 100 * MB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pictures(num_bytes: int, image_bytes: int) -> Iterator[bytes]:
    """Images that decode in no time and do not compress: small JPEGs with noise behind their end."""
    picture = encode(Image.effect_mandelbrot((48, 48), (-2, -1, 1, 1), 40).convert("RGB"), "JPEG")
    noise = random.Random(0).randbytes(image_bytes)
    for i in range(num_bytes // image_bytes):
        yield picture + i.to_bytes(8, "big") + noise[: image_bytes - len(picture) - 8]


def write_tar(path: Path, num_bytes: int, image_bytes: int = 500_000, *, is_apart: bool = False) -> str:
    with tarfile.open(path, "w") as tar:
        numbers = count()

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number, data in zip(numbers, pictures(num_bytes, image_bytes), strict=False):
            add(f"{number:06d}.jpg", data)
            if not is_apart:
                add(f"{number:06d}.cls", b"1")
        for number in range(num_bytes // image_bytes if is_apart else 0):
            add(f"{number:06d}.cls", b"1")
    return str(path)


def write_parquet(path: Path, num_bytes: int, image_bytes: int = 500_000, **options: Any) -> str:
    """One row group, however large."""
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    )
    rows = [{"image": {"bytes": data, "path": None}, "label": 1} for data in pictures(num_bytes, image_bytes)]
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, path, row_group_size=len(rows), compression="none", **options)
    assert pq.read_metadata(path).num_row_groups == 1
    return str(path)


def measure(
    shards: list[str], counts: list[int], checkpoint: str, folder: Path, **environment: str
) -> list[int]:
    """The peak in bytes before and behind each shard, all tokenized by one process."""
    first, *outcomes = tokenize_measured(
        shards, checkpoint=checkpoint, output=folder / "out", cwd=folder, environment=environment
    )
    for url, outcome in zip(shards, outcomes, strict=True):
        print(f"{url}: peak {outcome.peak_bytes >> 20} MiB")
    found = [(outcome.error, outcome.num_images, outcome.num_quarantined) for outcome in outcomes]
    assert found == [("", count, 0) for count in counts]
    return [first.peak_bytes, *(outcome.peak_bytes for outcome in outcomes)]


SIZES = [(30 * MB, 300 * MB), pytest.param((100 * MB, 1000 * MB), marks=pytest.mark.slow)]


@pytest.mark.parametrize("sizes", SIZES)
def test_local_shards(checkpoint: str, tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Small shards of every kind, then large ones: the large ones take no more."""
    shards, counts = [], []
    for size in sizes:
        shards += [
            write_tar(tmp_path / f"{size}.tar", size),
            write_tar(tmp_path / f"{size}-apart.tar", size, is_apart=True),
            write_parquet(tmp_path / f"{size}.parquet", size, write_batch_size=8),
        ]
        counts += [size // 500_000] * 3
    peaks = measure(shards, counts, checkpoint, tmp_path)
    assert peaks[6] - peaks[3] < SPREAD_BYTES


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(100 * MB, 1000 * MB)])
def test_shards_on_s3(
    checkpoint: str, tmp_path: Path, sizes: tuple[int, int], s3_url: str, s3_server: Any
) -> None:
    urls, counts = [], []
    for size in sizes:
        tar = write_tar(tmp_path / f"{size}.tar", size)
        for path in (tar, write_parquet(tmp_path / f"{size}.parquet", size, write_batch_size=8)):
            urls.append(storage.join(s3_url, Path(path).name))
            storage.publish_file(path, urls[-1], exclusive=True)
            Path(path).unlink()
            counts.append(size // 500_000)
    peaks = measure(urls, counts, checkpoint, tmp_path, **s3_server.environment())
    assert peaks[4] - peaks[2] < READ_AHEAD_BYTES + SPREAD_BYTES


@pytest.mark.slow
def test_shards_of_a_server_without_ranges(checkpoint: str, tmp_path: Path) -> None:
    """The server that comes with Python. What is held is the window of a stream; a Parquet file goes to the disk."""
    (tmp_path / "served").mkdir()
    names, counts = [], []
    for size in (100 * MB, 600 * MB):
        tar = write_tar(tmp_path / f"served/{size}.tar", size)
        parquet = write_parquet(tmp_path / f"served/{size}.parquet", size, write_batch_size=8)
        names += [Path(path).name for path in (tar, parquet)]
        counts += [size // 500_000] * 2
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "-b",
        "127.0.0.1",
        "-d",
        str(tmp_path / "served"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().partition("(")[2].partition("/)")[0]
            peaks = measure([f"{url}/{name}" for name in names], counts, checkpoint, tmp_path)
        finally:
            server.terminate()
    assert peaks[4] - peaks[2] < READ_AHEAD_BYTES + SPREAD_BYTES


@pytest.mark.parametrize("suffix", ["tar", pytest.param("parquet", marks=pytest.mark.slow)])
def test_large_images_are_not_gathered(checkpoint: str, tmp_path: Path, suffix: str) -> None:
    """Fewer large images are in work at a time than small ones: 24 of 40 MB take a part of their 960 MB."""
    path = tmp_path / f"large.{suffix}"
    shard = write_tar(path, 960 * MB, 40 * MB) if suffix == "tar" else write_parquet(
        path, 960 * MB, 40 * MB, write_batch_size=1, use_dictionary=False
    )  # fmt: skip
    before, after = measure([shard], [24], checkpoint, tmp_path)
    assert after - before < 256 * MB + 6 * 40 * MB + SPREAD_BYTES
