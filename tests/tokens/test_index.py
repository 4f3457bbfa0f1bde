from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens import index as index_module
from tatok_pipe.tokens.commit import commit_shard, committed_shards
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.index import forget_shards, refresh_index
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index, load_index, save_index
from tatok_pipe.tokens.layout import INDEX_FILE, data_url
from tatok_pipe.tokens.listing import list_data
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tatok_pipe.tokens.summary import merge_statistics, write_summary

Commit = Callable[..., str]


@pytest.fixture
def commit(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: Callable[..., list[TokenRecord]]
) -> Commit:
    """`commit(output, number, num_rows=…, spec=…)`: a committed shard, every third with quarantined samples."""

    def commit(output: str, number: int, *, num_rows: int | None = None, spec: TokenSpec = token_spec) -> str:
        shard = f"s3://bucket/{number:05d}.tar"
        source = ShardSource(shard, 1000 + number, f"etag-{number}")
        folder = tmp_path / f"work-{threading.get_ident()}"
        folder.mkdir(exist_ok=True)
        bad = [Quarantined("bad", "decode", f"Error{number % 4}", "no image", 10)] * (number % 3)
        with ShardWriter(folder / "data.parquet", spec, source) as writer:
            writer.append(make_token_records(spec, number % 7 if num_rows is None else num_rows, seed=number))
            writer.add_quarantined(bad)
        write_quarantine(folder / "quarantine.parquet", bad)
        name = token_shard_name(shard)
        commit_shard(
            output, name, folder / "data.parquet", folder / "quarantine.parquet" if bad else None,
            spec=spec, source=source,
        )  # fmt: skip
        return name

    return commit


@pytest.fixture
def output(tmp_path: Path, token_spec: TokenSpec) -> str:
    url = str(tmp_path / "tokens")
    create_or_check(url, token_spec, {})
    return url


@pytest.fixture
def footers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The footers that were read, by URL."""
    read: list[str] = []
    original = index_module.read_shard_metadata

    def count(url: str) -> Any:
        read.append(url)
        return original(url)

    monkeypatch.setattr(index_module, "read_shard_metadata", count)
    return read


def recount(output: str, spec: TokenSpec) -> dict[str, Any]:
    """The oracle: every footer read again."""
    return merge_statistics(output, sorted(committed_shards(output)), spec).to_json()


def check_whole(index: Index | None, output: str, spec: TokenSpec) -> None:
    """The index is what the dataset is: every row as its footer says, sums as a full recount."""
    assert index is not None
    assert index.names == sorted(committed_shards(output))
    assert index.statistics.to_json() == recount(output, spec)
    dataset = TokenDataset(output)
    for row in index.table.to_pylist():
        footer = dataset.shard_metadata(row["name"])
        source = ("source_url", "source_size_bytes", "source_etag", "source_sha256")
        assert tuple(row[name] for name in source) == dataclasses.astuple(footer.source)
        assert row["content_digest"] == footer.content_digest
        assert (row["num_rows"], row["num_tokens"]) == (footer.num_rows, footer.statistics.num_tokens)
        assert row["num_quarantined"] == footer.statistics.num_quarantined
        assert row["size_bytes"] == storage.file_info(dataset.shard_url(row["name"])).size_bytes


def check_growth(output: str, spec: TokenSpec, commit: Commit, footers: list[str]) -> None:
    names = [commit(output, number) for number in range(12)]
    seen: list[tuple[int, int]] = []
    index = refresh_index(output, spec, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(number, 12) for number in range(1, 13)]
    assert index.num_footers_read == 12
    check_whole(index, output, spec)
    check_whole(load_index(output, spec), output, spec)

    names += [commit(output, number) for number in range(12, 15)]
    footers.clear()
    index = refresh_index(output, spec)
    assert sorted(footers) == sorted(data_url(output, name) for name in names[12:])
    check_whole(index, output, spec)

    footers.clear()
    assert refresh_index(output, spec).statistics.to_json() == index.statistics.to_json()
    summary = write_summary(output, planned=names, failed={})
    assert footers == []
    assert summary["statistics"] == recount(output, spec)
    assert summary["num_shards_committed"] == 15
    assert INDEX_FILE in storage.list_files(output)


def test_only_new_footers_are_read(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    check_growth(output, token_spec, commit, footers)


@pytest.mark.s3
def test_only_new_footers_are_read_s3(
    s3_url: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    create_or_check(s3_url, token_spec, {})
    check_growth(s3_url, token_spec, commit, footers)
    etags = load(s3_url, token_spec).table["version"].to_pylist()
    assert all(len(etag) == 32 for etag in etags)


def load(output: str, spec: TokenSpec) -> Index:
    index = load_index(output, spec)
    assert index is not None
    return index


def test_an_earlier_answer_is_gone_on_from(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    for number in range(3):
        commit(output, number)
    known = refresh_index(output, token_spec, save=False)
    assert INDEX_FILE not in os.listdir(output)
    before = known.statistics.to_json()
    commit(output, 3)
    footers.clear()
    check_whole(refresh_index(output, token_spec, known=known), output, token_spec)
    assert len(footers) == 1 + 4  # one new, and the recount of check_whole
    assert known.statistics.to_json() == before  # what was given is not changed
    check_whole(load_index(output, token_spec), output, token_spec)


@pytest.mark.parametrize("change", ["removed", "replaced", "replaced by the same size"])
def test_a_data_file_that_went_or_changed(
    output: str, token_spec: TokenSpec, commit: Commit, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [commit(output, number, num_rows=4) for number in range(5)]
    refresh_index(output, token_spec)
    path = Path(data_url(output, names[2]))
    if change == "replaced by the same size":
        content = path.read_bytes()
        time.sleep(0.02)
        path.write_bytes(content)
    else:
        path.unlink()
        if change == "replaced":
            assert commit(output, 2, num_rows=6) == names[2]
    with caplog.at_level("INFO"):
        check_whole(refresh_index(output, token_spec), output, token_spec)
    assert "gone or were replaced" in caplog.text
    check_whole(load_index(output, token_spec), output, token_spec)


def test_all_data_files_went(output: str, token_spec: TokenSpec, commit: Commit) -> None:
    name = commit(output, 1)
    refresh_index(output, token_spec)
    Path(data_url(output, name)).unlink()
    assert len(refresh_index(output, token_spec)) == 0
    assert len(load(output, token_spec)) == 0


def wrong_bytes(output: str, spec: TokenSpec, kind: str) -> bytes:
    path = Path(output) / INDEX_FILE
    good = path.read_bytes()
    if kind == "empty":
        return b""
    if kind == "garbage":
        return b"PAR1" + b"\xff" * 100 + b"PAR1"
    if kind == "cut":
        return good[: len(good) // 2]
    if kind == "other spec":
        other = dataclasses.replace(spec, dtf=FilterSpec("none", "gain", 0.0, 1))
        save_index(output, other, load(output, spec))
    elif kind == "sums":
        index = load(output, spec)
        index.statistics.num_tokens += 1
        save_index(output, spec, index)
    elif kind == "a shard twice":
        index = load(output, spec)
        save_index(
            output, spec, Index(pa.concat_tables([index.table, index.table.slice(0, 1)]), index.statistics)
        )
    elif kind == "foreign":
        pq.write_table(pa.table({"name": ["x"]}), path)
    else:
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        if kind == "older":
            metadata[b"tatok.index_version"] = b"0"
        elif kind == "other columns":
            table = table.drop_columns(["num_rows"])
        elif kind == "no statistics":
            del metadata[b"tatok.statistics"]
        pq.write_table(table.replace_schema_metadata(metadata), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        "empty", "garbage", "cut", "other spec", "sums", "a shard twice", "foreign", "older", "other columns",
        "no statistics",
    ],
)  # fmt: skip
def test_an_index_that_is_no_index_is_made_anew(
    output: str, token_spec: TokenSpec, commit: Commit, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        commit(output, number, num_rows=2)
    refresh_index(output, token_spec)
    wrong = wrong_bytes(output, token_spec, kind)
    (Path(output) / INDEX_FILE).write_bytes(wrong)
    assert load_index(output, token_spec) is None
    assert f"{INDEX_FILE}: not used" in caplog.text
    check_whole(refresh_index(output, token_spec), output, token_spec)
    check_whole(load_index(output, token_spec), output, token_spec)
    caplog.clear()
    refresh_index(output, token_spec)
    assert not caplog.text


def test_what_forget_shards_takes_out_needs_no_recount(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    names = [commit(output, number) for number in range(10)]
    refresh_index(output, token_spec)
    footers.clear()
    forget_shards(output, token_spec, [names[2], names[7], "no-such-shard"])
    assert sorted(footers) == sorted([data_url(output, names[2]), data_url(output, names[7])])
    index = load(output, token_spec)
    assert set(names) - set(index.names) == {names[2], names[7]}
    assert index.statistics.to_json() == merge_statistics(output, index.names, token_spec).to_json()
    Path(data_url(output, names[2])).unlink()
    footers.clear()
    index = refresh_index(output, token_spec)  # the other one is still there
    assert footers == [data_url(output, names[7])]
    check_whole(index, output, token_spec)


def test_forgetting_a_shard_that_was_replaced_meanwhile(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    names = [commit(output, number, num_rows=3) for number in range(3)]
    refresh_index(output, token_spec)
    saved = (Path(output) / INDEX_FILE).read_bytes()
    Path(data_url(output, names[0])).unlink()
    commit(output, 0, num_rows=5)
    forget_shards(output, token_spec, [names[0]])
    assert (Path(output) / INDEX_FILE).read_bytes() == saved  # nothing that could be subtracted is known
    check_whole(refresh_index(output, token_spec), output, token_spec)


def test_a_shard_that_goes_while_footers_are_read(
    output: str, token_spec: TokenSpec, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [commit(output, number) for number in range(4)]

    def list_and_remove(url: str) -> pa.Table:
        listing = list_data(url)
        Path(data_url(output, names[1])).unlink(missing_ok=True)
        return listing

    monkeypatch.setattr(index_module, "list_data", list_and_remove)
    check_whole(refresh_index(output, token_spec), output, token_spec)
    assert len(load(output, token_spec)) == 3


def test_what_a_killed_refresh_has_read_is_kept(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        commit(output, number)
    monkeypatch.setattr(index_module, "SAVE_EVERY_S", 0.0)

    def die(num_read: int, num_new: int) -> None:
        if num_read == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh_index(output, token_spec, on_progress=die)
    kept = load(output, token_spec)
    assert len(kept) == 5
    assert kept.statistics.to_json() == merge_statistics(output, kept.names, token_spec).to_json()
    footers.clear()
    index = refresh_index(output, token_spec)
    assert len(footers) == index.num_footers_read == 4
    check_whole(index, output, token_spec)


def test_few_footers_are_held_at_a_time(
    output: str, token_spec: TokenSpec, commit: Commit, footers: list[str]
) -> None:
    for number in range(150):
        commit(output, number, num_rows=0)
    most = 0

    def look(num_read: int, num_new: int) -> None:
        nonlocal most
        time.sleep(0.002)
        most = max(most, len(footers) - num_read)

    refresh_index(output, token_spec, on_progress=look)
    assert 8 < most <= 2 * index_module.NUM_READERS + 1


def test_jobs_that_refresh_at_once(output: str, token_spec: TokenSpec, commit: Commit) -> None:
    """Whatever the order of their writes, every index that anyone can read counts exactly its own rows."""
    is_over = threading.Event()

    def refresh() -> int:
        num_looked = 0
        while not is_over.is_set():
            refresh_index(output, token_spec)
            index = load(output, token_spec)
            assert index.statistics.to_json() == merge_statistics(output, index.names, token_spec).to_json()
            num_looked += 1
        return num_looked

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(refresh) for _ in range(3)]
        list(pool.map(lambda number: commit(output, number), range(40)))
        is_over.set()
        assert all(job.result() for job in jobs)
    check_whole(refresh_index(output, token_spec), output, token_spec)


def test_a_shard_of_another_spec_is_refused(output: str, token_spec: TokenSpec, commit: Commit) -> None:
    commit(output, 0)
    other = dataclasses.replace(token_spec, dtf=FilterSpec("none", "gain", 0.0, 1))
    name = commit(output, 1, spec=other)
    with pytest.raises(RefusedError, match=rf"{name}\.parquet: was made with other settings .*dtf\.rule"):
        refresh_index(output, token_spec)


def test_what_is_no_shard_does_not_count(output: str, token_spec: TokenSpec, commit: Commit) -> None:
    name = commit(output, 0)
    for other in (".x.parquet.ab.tmp", "_x.parquet", ".x.parquet", "notes.txt"):
        (Path(output) / "data" / other).write_bytes(b"x")
    assert list_data(output)["name"].to_pylist() == [name]
    assert refresh_index(output, token_spec).names == [name]


def test_an_empty_dataset_gets_no_index(output: str, token_spec: TokenSpec) -> None:
    index = refresh_index(output, token_spec)
    assert (len(index), index.total("num_rows"), index.table.schema) == (0, 0, INDEX_SCHEMA)
    assert sorted(os.listdir(output)) == ["README.md", "_dataset.json"]
