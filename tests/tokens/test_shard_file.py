"""Token shards take no more memory than they may, whatever they promise; and those of ours are read as they were."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.tokens import shard_file
from tatok_pipe.tokens.checking.check import CorruptShard, Damage, verify_shard_file
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource, ShardWriter, iter_records
from tatok_pipe.tokens.shard_file import ShardFile
from tests.token_datasets import TINY, make_rows, write_token_dataset

LIMIT = 1 << 16  # bytes, for these tests


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAX_COLUMN_BYTES", LIMIT)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A token shard of 40 rows with captions."""
    rows = [replace(row, caption=f"picture {number % 3}") for number, row in enumerate(make_rows(40))]
    path = tmp_path / "a.parquet"
    with ShardWriter(path, TINY, ShardSource("/images/a.tar", 1)) as writer:
        writer.append(rows)
    return path


def rewrite(path: Path, column: str, values: list[str | None], **how: Any) -> None:
    """Put other values into a column; the footer stays as it was."""
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    other = table.set_column(place, table.schema.field(column), pa.array(values, pa.string()))
    other = other.replace_schema_metadata(pq.read_metadata(path).metadata)
    pq.write_table(other, path, compression="zstd", write_page_checksum=True, **how)


def test_what_is_read_is_what_pyarrow_reads(shard: Path) -> None:
    with shard.open("rb") as source:
        file = ShardFile(source)
        assert file.schema == pq.read_schema(shard)
        assert file.read([0]) == pq.read_table(shard)
        assert file.read([0], ["caption", "patch_codes"]) == pq.read_table(
            shard, columns=["caption", "patch_codes"]
        )
    assert [row.caption for row in iter_records(str(shard))] == [
        f"picture {number % 3}" for number in range(40)
    ]


@pytest.mark.parametrize(
    ("column", "values", "how"),
    [
        # One text, repeated through a dictionary: 40 rows of 4 KB in a page of 4 KB.
        ("caption", ["x" * 4096] * 40, {}),
        # The same without a dictionary, in compressed pages.
        ("meta", ["x" * 4096] * 40, {"use_dictionary": False}),
        ("key", [f"{number:04}" + "x" * 4096 for number in range(40)], {}),
    ],
)
def test_texts_that_expand_are_refused_before_they_do(
    shard: Path, column: str, values: list[str | None], how: dict[str, Any], small: None
) -> None:
    rewrite(shard, column, values, **how)
    with pytest.raises(
        UserError, match=rf"^{shard}: .*{column} in a row group, expected at most {LIMIT}; `python"
    ):
        list(iter_records(str(shard)))
    with pytest.raises(CorruptShard, match=str(LIMIT)) as found:
        verify_shard_file(str(shard))
    assert found.value.damage == Damage.UNREADABLE


def test_numbers_that_expand_are_refused(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "MAX_COLUMN_BYTES", 1 << 8)
    with pytest.raises(ValueError, match="bytes of global_codes"), shard.open("rb") as source:
        ShardFile(source).read([0], ["global_codes"])


def test_a_writer_keeps_to_what_readers_take(tmp_path: Path, small: None) -> None:
    rows = [replace(row, meta='"' + "x" * 4096 + '"') for row in make_rows(40)]
    told = (
        rf"^/images/a.tar: \d+ bytes of meta in a row group, expected at most {LIMIT}; input.limits.ignore="
    )
    with (
        pytest.raises(UnusableShard, match=told),
        ShardWriter(tmp_path / "a.parquet", TINY, ShardSource("/images/a.tar", 1)) as writer,
    ):
        writer.append(rows)
    assert not (tmp_path / "a.parquet").exists()


def test_a_page_that_promises_more_than_its_file_may_hold(shard: Path, small: None) -> None:
    """A text of ours lies in a page that is larger than the limit, though all others are small."""
    rewrite(shard, "caption", ["x" * (2 * LIMIT), *[None] * 39])
    with pytest.raises(ValueError, match=str(LIMIT)), io.BytesIO(shard.read_bytes()) as source:
        ShardFile(source).read([0], ["caption"])


def test_a_reader_of_the_dataset_tells_it_in_one_line(tmp_path: Path, small: None) -> None:
    url = str(tmp_path / "tokens")
    write_token_dataset(url, [make_rows(40)])
    (path,) = Path(url, "data").glob("*.parquet")
    rewrite(path, "caption", ["x" * 4096] * 40)
    with pytest.raises(UserError, match=r"bytes of caption .*--verify") as told:
        list(TokenDataset(url).rows())
    assert "\n" not in str(told.value)
