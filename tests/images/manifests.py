"""Manifests for tests, and what is read by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.errors import UserError
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import ShardFile

Row = dict[str, Any]


def write_images(folder: Path, *names: str, data: bytes = b"an image") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_lines(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def plan(manifest: Path | str, place: Path, *, size: int = 2, **options: Any) -> list[ShardFile]:
    where = ListPlace(str(place / "_input.parquet"), images_per_part=size, **options)
    return find_image_shards(str(manifest), option="input.shards", place=where)


def read(shard: ShardFile, **options: Any) -> list[ImageSample | Quarantined]:
    with open_samples(shard.url, info=shard_info(shard.url), **options) as samples:
        return list(samples)


def contents(shards: list[ShardFile], **options: Any) -> dict[str, tuple[int | None, str | None]]:
    """Label and caption by key."""
    samples = [sample for shard in shards for sample in read(shard, **options)]
    assert all(isinstance(sample, ImageSample) for sample in samples)
    return {each.key: (each.label, each.caption) for each in samples if isinstance(each, ImageSample)}


def refusal(manifest: Path | str, place: Path, **options: Any) -> str:
    """The one line, without the name of the manifest. Nothing is written."""
    with pytest.raises(UserError) as caught:
        plan(manifest, place, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message
    assert not (place / "_input.parquet").exists()
    start = f"input.shards={manifest}: "
    assert message.startswith(start)
    return message.removeprefix(start)
