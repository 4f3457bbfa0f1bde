"""Datasets and options that do not serve."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.step_loader.steps import (
    CONFIG,
    COUNTS,
    MakeRecords,
    epoch_of,
    make_records,
    open_loader,
    write_shard,
)


@pytest.mark.parametrize(
    ("changes", "shown"), [({"label": None}, "None"), ({"label": 10}, "10"), ({"label": -1}, "-1")]
)
def test_labels_out_of_range(
    url: str, token_spec: TokenSpec, make_token_records: MakeRecords, changes: dict[str, Any], shown: str
) -> None:
    records = make_records(make_token_records, token_spec, 3, 16)
    records[5] = dataclasses.replace(records[5], **changes)
    write_shard(Path(url), "s3", token_spec, records)
    for config, row in (
        (CONFIG, "row 5"),
        (dataclasses.replace(CONFIG, held_out_share=0.01), "key '3/image-000005'"),
    ):
        with pytest.raises(
            UserError, match=rf"data/s3\.parquet: {row} has label {shown}, expected 0 to 9; set num_"
        ):
            epoch_of(open_loader(url, config))


def test_an_empty_dataset(tmp_path: Path, token_spec: TokenSpec) -> None:
    with pytest.raises(UserError, match="no _dataset.json there"):
        read_training_set(str(tmp_path))
    create_or_check(str(tmp_path), token_spec, {})
    with pytest.raises(UserError, match="0 committed shards with no rows; there is nothing to train on"):
        read_training_set(str(tmp_path))
    (tmp_path / "data").mkdir()
    write_shard(tmp_path, "a", token_spec, [])
    with pytest.raises(UserError, match="1 committed shards with no rows"):
        read_training_set(str(tmp_path))


def test_a_shard_of_another_dataset(url: str, token_spec: TokenSpec) -> None:
    write_shard(Path(url), "x", dataclasses.replace(token_spec, tokenizer_fingerprint="other"), [])
    with pytest.raises(RefusedError, match="x.parquet: was made with other settings"):
        read_training_set(url)


def test_listing_writes_nothing(url: str) -> None:
    before = sorted(path.name for path in Path(url).rglob("*"))
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    assert [(shard.name, shard.num_rows) for shard in shards] == [(f"s{i}", n) for i, n in enumerate(COUNTS)]
    assert spec == TokenDataset(url).spec
    assert sorted(path.name for path in Path(url).rglob("*")) == before


def test_shards_that_change_or_go(url: str, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    loader = open_loader(url)
    write_shard(Path(url), "s3", token_spec, make_records(make_token_records, token_spec, 3, 15))
    with pytest.raises(
        UserError, match=r"s3\.parquet: has 15 rows, it had 16 when the dataset was listed; .*--verify"
    ):
        epoch_of(loader)
    with Path(url, "data/s3.parquet").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(UserError, match=r"s3\.parquet: cannot be read: .*; .*--verify"):
        epoch_of(loader)
    Path(url, "data/s3.parquet").unlink()
    with pytest.raises(UserError, match=r"s3\.parquet.*; .*--verify") as error:
        epoch_of(loader)
    assert "\n" not in str(error.value)


def test_row_groups_of_another_program(url: str, token_spec: TokenSpec, make_token_records: MakeRecords,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with monkeypatch.context() as other:
        other.setattr(token_format, "ROW_GROUP_ROWS", 10)
        write_shard(Path(url), "s3", token_spec, make_records(make_token_records, token_spec, 3, 16))
    with pytest.raises(UserError, match=r"s3\.parquet: row group 0 has 10 rows, expected 16; "):
        epoch_of(open_loader(url))


def test_a_flipped_bit(url: str) -> None:
    path = Path(url, "data/s4.parquet")
    loader = open_loader(url)
    column = pq.read_metadata(path).row_group(2).column(8)
    assert column.path_in_schema.startswith("patch_codes")
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin + column.total_compressed_size - 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s4\.parquet: cannot be read: .*(CRC|checksum).*; .*--verify"):
        epoch_of(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "num_ranks": 2}, "rank=2: expected 0 to num_ranks - 1 = 1"),
        ({"split": "test"}, "split='test': expected one of train, held_out"),
        ({"seed": -1}, "seed=-1: expected 0 to 4294967295"),
    ],
)
def test_wrong_arguments(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_loader(url, **options)


def test_sizes_that_do_not_go_with_the_tokenizer(url: str) -> None:
    with pytest.raises(UserError, match="row_tokens=19: expected at least 20, the longest sequence"):
        open_loader(url, dataclasses.replace(CONFIG, row_tokens=19))
    open_loader(url, dataclasses.replace(CONFIG, row_tokens=20))
    with pytest.raises(UserError, match="window_sequences=30000000: expected at most 26843545"):
        open_loader(url, dataclasses.replace(CONFIG, window_sequences=30_000_000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_per_step": 0}, "rows_per_step=0: expected at least 1"),
        ({"held_out_share": 1.0}, "held_out_share=1.0: expected 0 or more, and less than 1"),
        ({"on_dataset_change": "ignore"}, "on_dataset_change='ignore': expected one of error, restart_epoch"),
    ],
)
def test_config_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
