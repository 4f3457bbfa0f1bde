from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.records import TokenRecord
from tatok_pipe.report.inventory import take_inventory
from tatok_pipe.report.selection import Pick, pick_groups
from tatok_pipe.report.sources import Sample, read_sample
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
JPEG = b"\xff\xd8\xff"


def image(shard: int, row: int) -> bytes:
    """Bytes that tell their place by their length; every third one begins like a PNG. Nothing decodes them."""
    head = JPEG if row % 3 else b"\x89PNG\r\n\x1a\n"
    return head + bytes(100 * shard + row)


@pytest.fixture
def dataset(
    tmp_path: Path, make_dataset: Any, write_tar: Any, token_spec: TokenSpec, make_token_records: MakeRecords
) -> TokenDataset:
    """Three shards of 10, 11 and 12 images, all sources there."""
    shards = {}
    for shard in range(3):
        records = make_token_records(token_spec, 10 + shard, seed=shard)
        members = {f"{record.key}.jpg": image(shard, row) for row, record in enumerate(records)}
        shards[write_tar(tmp_path / f"{shard}.tar", members)] = records
    return make_dataset(token_spec, shards)


def read(dataset: TokenDataset, picks: list[Pick], *, max_image_shards: int = 10) -> Sample:
    return read_sample(dataset, take_inventory(dataset), picks, max_image_shards=max_image_shards)


def all_picks(dataset: TokenDataset) -> list[Pick]:
    histograms = [shard.kept_histogram for shard in take_inventory(dataset).shards]
    return [pick for group in pick_groups(histograms, num_each=11).values() for pick in group]


def test_every_row_with_its_own_image(dataset: TokenDataset) -> None:
    picks = all_picks(dataset)
    assert len(picks) == 33
    sample = read(dataset, picks)
    found = {(pick.shard, sample.shown[pick].record.key) for pick in picks}
    assert len(found) == 33
    for pick in picks:
        shown = sample.shown[pick]
        rows = [record.key for record in dataset.rows(dataset.shards[pick.shard])]
        shard = int(dataset.shards[pick.shard].partition("-")[0])
        assert shown.image == image(shard, rows.index(shown.record.key)) and not shown.problem
        assert len(shown.record.patch_codes) == pick.kept


def test_source_sizes_of_all_rows(dataset: TokenDataset) -> None:
    sizes = read(dataset, []).sizes
    rows = [(name, *pair) for name in dataset.shards for pair in enumerate(dataset.rows(name))]
    assert sizes.num_tokens.tolist() == [record.num_tokens for _, _, record in rows]
    assert sizes.num_pixels.tolist() == [record.width * record.height for _, _, record in rows]
    assert sizes.num_bytes.tolist() == [len(image(int(name[0]), row)) for name, row, _ in rows]
    assert sizes.is_jpeg.tolist() == [row % 3 > 0 for _, row, _ in rows]
    assert (sizes.num_shards, sizes.is_complete, sizes.problems) == (3, True, ())


def test_reading_stops_behind_the_last_wanted_image(
    tmp_path: Path, make_dataset: Any, write_tar: Any, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, 3)
    path = tmp_path / "0.tar"
    shard = write_tar(path, {f"{record.key}.jpg": image(0, 1) for record in records} | {"last.jpg": b"x"})
    intact = path.read_bytes()
    path.write_bytes(intact[: 3 * 1024 + 512] + b"damage" * 500 + intact[3 * 1024 + 512 + 3000 :])
    sample = read(make_dataset(token_spec, {shard: records}), [])
    assert sample.sizes.is_complete and not sample.sizes.problems


def test_sources_that_are_gone_or_changed(dataset: TokenDataset) -> None:
    paths = [Path(shard.source.url) for shard in take_inventory(dataset).shards]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes() + bytes(1024))
    paths[2].write_bytes(b"\1" * paths[2].stat().st_size)
    picks = all_picks(dataset)
    sample = read(dataset, picks)
    assert all(sample.shown[pick].image is None for pick in picks)
    expected = {0: "No such file", 1: "has changed since it was tokenized", 2: "not a tar archive"}
    for pick in picks:
        assert expected[pick.shard] in sample.shown[pick].problem
        assert str(paths[pick.shard]) in sample.shown[pick].problem
    assert len(sample.sizes.problems) == 3
    assert len(sample.sizes.num_tokens) == 0 and not sample.sizes.is_complete


def test_sample_that_is_not_in_its_shard(
    tmp_path: Path, make_dataset: Any, write_tar: Any, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    record = make_token_records(token_spec, 1)[0]
    shard = write_tar(tmp_path / "0.tar", {"other.jpg": image(0, 1)})
    pick = Pick(0, len(record.patch_codes), 0)
    shown = read(make_dataset(token_spec, {shard: [record]}), [pick]).shown[pick]
    assert shown.image is None
    assert shown.problem == f"its image shard has no sample {record.key!r} any more"


def test_limit_of_image_shards(dataset: TokenDataset) -> None:
    picks = all_picks(dataset)
    none = read(dataset, picks, max_image_shards=0)
    assert all("input.image_shards=0" in none.shown[pick].problem for pick in picks)
    assert len(none.sizes.num_tokens) == 0 and not none.sizes.problems
    one = read(dataset, picks, max_image_shards=1)
    assert {pick.shard for pick in picks if one.shown[pick].image} == {picks[0].shard}


def test_rows_of_one_image_share_its_size(
    tmp_path: Path, make_dataset: Any, write_tar: Any, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    record = make_token_records(token_spec, 1)[0]
    shard = write_tar(tmp_path / "0.tar", {f"{record.key}.jpg": image(0, 7)})
    crops = [replace(record, crop=crop) for crop in range(3)]
    sizes = read(make_dataset(token_spec, {shard: crops}), []).sizes
    assert sizes.num_bytes.tolist() == [len(image(0, 7))] * 3
    assert np.all(sizes.is_jpeg)


def test_parquet_and_interleaved_sources(
    tmp_path: Path, make_dataset: Any, write_tar: Any, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    records = make_token_records(token_spec, 6)
    members = {f"{record.key}.jpg": image(0, row) for row, record in enumerate(records)}
    labels = {f"{record.key}.cls": b"1" for record in records}
    apart = write_tar(tmp_path / "0.tar", labels | members)
    rows = tmp_path / "1.parquet"
    table = {
        "key": [record.key for record in records],
        "image": [{"bytes": data} for data in members.values()],
    }
    pq.write_table(pa.table(table), rows)
    sample = read(make_dataset(token_spec, {apart: records, str(rows): records}), [])
    assert sample.sizes.is_complete and not sample.sizes.problems
    assert sample.sizes.num_bytes.tolist() == [len(data) for data in members.values()] * 2


@pytest.mark.parametrize("largest", [500, 499])
def test_members_are_limited_as_in_the_run(
    tmp_path: Path,
    make_dataset: Any,
    write_tar: Any,
    token_spec: TokenSpec,
    make_token_records: MakeRecords,
    largest: int,
) -> None:
    record = make_token_records(token_spec, 1)[0]
    shard = write_tar(tmp_path / "0.tar", {f"{record.key}.jpg": bytes(500)})
    Path(shard).write_bytes(Path(shard).read_bytes()[:1536])  # without tar's end marker
    spec = replace(token_spec, encoding=token_spec.encoding | {"max_member_bytes": largest})
    sizes = read(make_dataset(spec, {shard: [record]}), []).sizes
    assert sizes.is_complete == (largest == 500) and not sizes.problems
