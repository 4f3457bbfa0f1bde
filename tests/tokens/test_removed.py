"""What was removed is known by hashes, and nothing that was no such file passes for one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.tokens.removed import BrokenRemoved, Removed, hash_key, read_removed, write_removed


def test_a_key_is_removed_everywhere_or_in_one_shard(tmp_path: Path) -> None:
    removed = Removed().add([hash_key("a"), hash_key("b", shard="x-1")], ["first"])
    assert removed.find("x-1", ["a", "b", "c"]).tolist() == [True, True, False]
    assert removed.find("y-2", ["a", "b", "c"]).tolist() == [True, False, False]
    assert hash_key("b", shard="x-1") == hash_key("x-1/b") == hashlib.sha256(b"x-1/b").digest()
    assert not Removed().has("x-1", "a") and not removed.has("x-1", "")


def test_it_is_read_as_it_was_written_and_holds_no_keys(tmp_path: Path) -> None:
    url = str(tmp_path)
    assert read_removed(url) == Removed()
    removed = Removed().add([hash_key(f"secret-{n}") for n in range(100)], ["r"])
    write_removed(url, removed)
    content = Path(url, "_removed.parquet").read_bytes()
    assert read_removed(url) == removed
    assert b"secret" not in content
    more = removed.add([hash_key("another")], ["r", "s"])
    assert (more.requests, len(more.hashes)) == (("r", "s"), 101)
    write_removed(url, more)
    write_removed(url, Removed(frozenset(sorted(removed.hashes, reverse=True)), removed.requests))
    assert Path(url, "_removed.parquet").read_bytes() == content


@pytest.mark.parametrize("kind", ["empty", "text", "other columns", "other version", "no requests"])
def test_what_is_none_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "_removed.parquet"
    metadata = {"tatok.removed_version": "2" if kind == "other version" else "1"}
    metadata |= {} if kind == "no requests" else {"tatok.requests": json.dumps([])}
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"not this")
    else:
        data_type = pa.string() if kind == "other columns" else pa.binary(32)
        schema = pa.schema([pa.field("sha256", data_type, nullable=False)], metadata)
        pq.write_table(pa.table([pa.array([], data_type)], schema=schema), path)
    with pytest.raises(BrokenRemoved, match=r"_removed.parquet: is broken \(") as caught:
        read_removed(str(tmp_path))
    assert "\n" not in str(caught.value)
