"""A store of a million image shards that are nowhere: `synthetic://`, with listings as s3fs gives them.

Run as a script it plans a corpus on that store, and prints what it took: a process of its own, so that the
peak of its memory is that of the plan.

    python tests/synthetic_store.py ROOT NUM_SHARDS
    python tests/synthetic_store.py ROOT NUM_IMAGES NUM_BEFORE   # a folder of loose images; so many were there before
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from tatok_pipe.commands.tokenize_corpus.plan import make_plan
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, empty_statistics, token_shard_name
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index, save_index
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

IMAGES, TOKENS = "synthetic://bucket/images", "synthetic://bucket/tokens"
PHOTOS = "synthetic://bucket/photos"
SPEC = TokenSpec(
    num_globals=2,
    num_patches=16,
    global_vocab=64,
    patch_vocab=64,
    image_size=32,
    patch_size=8,
    tokenizer_fingerprint="sha256:" + "ab" * 32,
    dtf=FilterSpec("none", "gain", 0.0, 1),
)


class SyntheticStore(AbstractFileSystem):
    """Files of `root`, but the listings of images and of token shards are made up on demand."""

    protocol = "synthetic"
    root: ClassVar[Path]
    num_shards: ClassVar[int]

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = str(self._strip_protocol(path))
        if path == "bucket/images":
            return [_entry(f"{path}/{name}", size, etag) for name, size, etag in _images(self.num_shards)]
        if path == "bucket/photos":
            return [_entry(f"{path}/{name}", size, etag) for name, size, etag in _photos(self.num_shards)]
        if path == "bucket/tokens/data":
            return [_entry(f"{path}/{name}", size, etag) for name, size, etag in _listed(self.root)]
        raise FileNotFoundError(path)

    def find(
        self, path: str, maxdepth: Any = None, withdirs: Any = False, detail: bool = False, **options: Any
    ):  # pyright: ignore
        entries = self.ls(path)
        return {entry["name"]: entry for entry in entries} if detail else [each["name"] for each in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        return self._local(path).read_bytes()[start:end]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return _entry(str(self._strip_protocol(path)), self._local(path).stat().st_size, "")

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:  # pyright: ignore
        shutil.copyfile(lpath, self._local(rpath))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._local(path).write_bytes(value)

    def mv(self, path1: str, path2: str, **options: Any) -> None:  # pyright: ignore
        self._local(path1).rename(self._local(path2))

    def exists(self, path: str, **options: Any) -> bool:
        return self._local(path).exists()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._local(path).mkdir(parents=True, exist_ok=exist_ok)

    def _local(self, path: str) -> Path:
        return self.root / str(self._strip_protocol(path))


def register(root: Path, num_shards: int) -> None:
    """Make `synthetic://` known to fsspec."""
    SyntheticStore.root, SyntheticStore.num_shards = root, num_shards
    fsspec.register_implementation("synthetic", SyntheticStore, clobber=True)


def prepare(root: Path, num_shards: int, *, num_unindexed: int, num_missing: int) -> None:
    """The token dataset of `num_shards` images but the last `num_missing`; the ones before them have footers."""
    register(root, num_shards)
    (root / "bucket/tokens/data").mkdir(parents=True)
    create_or_check(TOKENS, SPEC, {})
    num_committed = num_shards - num_missing
    names, sizes, etags, urls, image_sizes, image_etags = [], [], [], [], [], []
    for index, (name, size, etag) in enumerate(_images(num_committed)):
        url = f"{IMAGES}/{name}"
        names.append(token_shard_name(url))
        urls.append(url)
        image_sizes.append(size)
        image_etags.append(etag)
        if index < num_committed - num_unindexed:
            sizes.append(100_000 + index)
            etags.append(_etag(f"tokens {index}"))
        else:
            path = root / f"bucket/tokens/data/{names[-1]}.parquet"
            with ShardWriter(path, SPEC, ShardSource(url, size, etag)):
                pass
            sizes.append(path.stat().st_size)
            etags.append(_etag(f"tokens {index}"))
    pq.write_table(pa.table({"name": names, "size": sizes, "etag": etags}), root / "listing.parquet")
    num_indexed = num_committed - num_unindexed
    counts = np.full(num_indexed, 1000)
    blank, digests = [""] * num_committed, ["0" * 64] * num_committed
    columns = (
        names, sizes, etags, urls, image_sizes, image_etags, blank, 0 * counts, counts, 50 * counts, counts // 500,
        digests,
    )  # fmt: skip
    table = pa.table([column[:num_indexed] for column in columns], schema=INDEX_SCHEMA).sort_by("name")
    statistics = empty_statistics(SPEC)
    statistics.num_images, statistics.num_tokens = 1000 * num_indexed, 50_000 * num_indexed
    statistics.num_quarantined, statistics.bytes_in = 2 * num_indexed, sum(image_sizes[:num_indexed])
    save_index(TOKENS, SPEC, Index(table, statistics))


def _images(num_shards: int) -> Iterator[tuple[str, int, str]]:
    for index in range(num_shards):
        yield f"{index:07d}.tar", 100_000_000 + index, _etag(str(index))


def _photos(num_images: int) -> Iterator[tuple[str, int, str]]:
    for index in range(num_images):
        yield f"n{index % 1000:08d}/n{index % 1000:08d}_{index:07d}.JPEG", 100_000 + index, _etag(str(index))


def _listed(root: Path) -> Iterator[tuple[str, int, str]]:
    with pq.ParquetFile(root / "listing.parquet") as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                yield row["name"] + ".parquet", row["size"], row["etag"]


def _etag(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _entry(path: str, size: int, etag: str) -> dict[str, Any]:
    """As botocore parses a page and s3fs completes it; nothing is shared between entries but the field names."""
    entry: dict[str, Any] = {"Key": path.partition("/")[2]}
    entry["LastModified"] = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    entry["ETag"] = f'"{etag}"'
    entry["ChecksumAlgorithm"] = ["".join(("CRC64", "NVME"))]
    entry["ChecksumType"] = "".join(("FULL_", "OBJECT"))
    entry["Size"] = size
    entry["StorageClass"] = "".join(("STAND", "ARD"))
    entry["type"] = "file"
    entry["size"] = size
    entry["Key"] = entry["name"] = path
    return entry


def plan_photos(root: str, num_images: str, num_before: str) -> None:
    """Plan the folder with `num_before` images, then with all."""
    place = ListPlace(f"{root}/_input.parquet")
    register(Path(root), int(num_before))
    before = find_image_shards(PHOTOS, option="input.shards", place=place)
    register(Path(root), int(num_images))
    base_bytes, wall, cpu = _peak_bytes(), time.monotonic(), time.process_time()
    shards = find_image_shards(PHOTOS, option="input.shards", place=place)
    measured = {
        "wall_s": time.monotonic() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": _peak_bytes(),
        "base_bytes": base_bytes,
        "num_parts": len(shards),
        "num_new": len(set(shards) - set(before)),
    }
    print(json.dumps(measured))


def main(root: str, num_shards: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    register(Path(root), int(num_shards))
    base_bytes = _peak_bytes()
    wall, cpu = time.monotonic(), time.process_time()
    plan = make_plan(TOKENS, SPEC, expand_shards(IMAGES))
    measured = {
        "wall_s": time.monotonic() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": _peak_bytes(),
        "base_bytes": base_bytes,
        "num_planned": plan.num_planned,
        "num_done": plan.num_done,
        "todo": [plan.todo[0].url, plan.todo[-1].url, len(plan.todo)],
        "num_changed": len(plan.changed),
        "num_footers_read": plan.index.num_footers_read,
    }
    print(json.dumps(measured))


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    (main if len(sys.argv) == 3 else plan_photos)(*sys.argv[1:])
