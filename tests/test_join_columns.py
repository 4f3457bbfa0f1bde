"""Columns of a table joined to a token dataset by key: kept beside it, told of in versions, and conditions on them."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens import join as edit_join
from tatok_pipe.commands.edit_tokens import run as edit_run
from tatok_pipe.edit_tokens import main
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.joined import read_joined
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.token_loader import TokenLoader
from tatok_pipe.tokens.loading.training_set import count_chosen, read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig
from tatok_pipe.tokens.versions import read_versions
from tests.entries import assert_told
from tests.test_edit_tokens import content, name_of, write_dataset
from tests.token_datasets import make_rows

NUM_ROWS = 90
KEYS = [f"image-{number:06d}" for number in range(NUM_ROWS)]
SCORES = {key: (7 * number) % 11 - 0.5 for number, key in enumerate(KEYS)}  # by hand: no order of the rows


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Three shards of 30 rows."""
    shards = [make_rows(30, first=30 * number) for number in range(3)]
    return write_dataset(str(tmp_path / "tokens"), tmp_path, shards)


def write_table(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Of all keys, backwards, and of one that the dataset does not have."""
    keys = [*KEYS[::-1], "another"]
    random = np.random.default_rng(0)
    return write_table(
        tmp_path / "scores.parquet",
        key=keys,
        aesthetic=pa.array([SCORES.get(key, 99.0) for key in keys], pa.float32()),
        text=pa.array([f"of {key}" for key in keys]).dictionary_encode(),
        clip=pa.array(list(random.random((len(keys), 4), np.float32)), pa.list_(pa.float32(), 4)),
    )


def join(url: str, table: str, *arguments: str) -> int | None:
    return main([f"input.url={url}", f"join.table={table}", *arguments])


def test_values_stand_with_their_keys_and_tokens_stay(url: str, table: str) -> None:
    before = content(url)
    assert join(url, table) == EXIT_DONE
    after = content(url)
    assert {file: after[file] for file in before} == before
    dataset, given = TokenDataset(url), {row["key"]: row for row in pq.read_table(table).to_pylist()}
    for name in dataset.shards:
        rows = list(dataset.rows(name))
        for row, joined in zip(rows, dataset.joined(name).to_pylist(), strict=True):
            assert joined == {column: given[row.key][column] for column in ("aesthetic", "clip", "text")}
    assert [version.columns for version in read_versions(url)] == ["", read_joined(url).digest]
    assert TokenDataset(url).version.number == 2 and TokenDataset(url, version=1).num_rows == NUM_ROWS
    assert not verify_dataset(url)
    # The same command again: nothing is left to do, and nothing changes. Another order of the table: the same bytes.
    assert join(url, table) == EXIT_DONE and content(url) == after
    pq.write_table(pq.read_table(table).sort_by("key"), table)
    assert join(url, table) == EXIT_DONE and content(url) == after


def test_columns_come_one_after_the_other(url: str, table: str, tmp_path: Path) -> None:
    assert join(url, table, "join.columns=[aesthetic]") == EXIT_DONE
    assert join(url, table, "join.columns=[clip]") == EXIT_DONE
    assert join(url, table, "join.columns=[text]") == EXIT_DONE
    whole = write_dataset(str(tmp_path / "whole"), tmp_path, [make_rows(30, first=30 * n) for n in range(3)])
    assert join(whole, table) == EXIT_DONE
    columns = {file: data for file, data in content(url).items() if "columns" in file}
    assert columns == {file: data for file, data in content(whole).items() if "columns" in file}
    assert len(columns) == 1 + 3
    other = write_table(
        tmp_path / "other.parquet", key=KEYS, aesthetic=pa.array([1.0] * NUM_ROWS, pa.float32())
    )
    told = r"aesthetic was joined before with other values; rename it, or give join\.replace=true"
    assert_told(main, [f"input.url={url}", f"join.table={other}"], told)
    assert join(url, other, "join.replace=true") == EXIT_DONE
    (row, *_) = TokenDataset(url).joined(name_of(0)).to_pylist()
    assert row["aesthetic"] == 1.0 and row["text"] == f"of {KEYS[0]}"
    assert not verify_dataset(url)


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"key": KEYS, "label": KEYS}, (), r"join\.columns=label: the rows have a column of this name"),
        ({"key": KEYS, "and": KEYS}, (), r"join\.columns=and: expected letters, digits"),
        ({"key": KEYS, "when": pa.array([0] * NUM_ROWS, pa.timestamp("s"))}, (), r"is timestamp\[ms\], which is not"),
        ({"key": KEYS, "many": [[["a"]]] * NUM_ROWS}, (), r"is list<.*>, which is not kept"),
        ({"key": KEYS}, (), r"has no column but key"),
        ({"id": KEYS, "x": KEYS}, (), r"join\.key=key: .* has 0 such columns; it has id, x"),
        ({"key": KEYS, "x": KEYS}, ("join.columns=[x,x]",), r"join\.columns=\[x, x\]: names a column twice"),
        ({"key": KEYS, "x": KEYS}, ("join.columns=[y]",), r"join\.columns=y: .* has 0 such columns; it has key, x"),
        ({"key": [*KEYS[:-1], KEYS[0]], "x": KEYS}, (), rf"1 keys come more than once, first '{KEYS[0]}'"),
        ({"key": [*KEYS[:-1], None], "x": KEYS}, (), r"1 rows have no key"),
        ({"key": KEYS[2:], "x": KEYS[2:]}, (), rf"no row for 2 of 90 keys, first '{KEYS[0]}' of"),
        ({"key": ["a"], "x": [1]}, ("join.missing=empty",), r"no row for 90 of 90 keys.*or another join\.key$"),
        ({"key": [0.5], "x": [1]}, (), r"join\.key=key: is double; expected text"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined(
    columns: dict[str, object], arguments: tuple[str, ...], message: str, url: str, tmp_path: Path
) -> None:
    before = content(url)
    given = write_table(tmp_path / "given.parquet", **columns)
    assert_told(main, [f"input.url={url}", f"join.table={given}", *arguments], message)
    assert content(url) == before


def test_what_is_no_table(url: str, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("key,score")
    (tmp_path / "empty").mkdir()
    (tmp_path / "scores.csv").write_text("key,score")
    for given, message in (
        ("text.parquet", "cannot be read"), ("absent.parquet", "not found"), ("empty", "no Parquet file there"),
        ("scores.csv", "no Parquet file there; expected one, or a folder of them"),
    ):  # fmt: skip
        assert_told(main, [f"input.url={url}", f"join.table={tmp_path}/{given}"], message)


def test_a_key_of_several_shards_is_named_with_its_shard(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "tokens"), tmp_path, [make_rows(3), make_rows(3)])
    keys = KEYS[:3]
    bare = write_table(tmp_path / "bare.parquet", key=keys, x=[1, 2, 3])
    assert_told(
        main, [f"input.url={url}", f"join.table={bare}"], r"is in more than one token shard .*TOKEN_SHARD/KEY"
    )
    full = [f"{name_of(shard)}/{key}" for shard in (0, 1) for key in keys]
    named = write_table(tmp_path / "named.parquet", key=full, x=list(range(6)))
    assert join(url, named) == EXIT_DONE
    found = [TokenDataset(url).joined(name)["x"].to_pylist() for name in TokenDataset(url).shards]
    assert found == [[0, 1, 2], [3, 4, 5]]


def test_rows_without_a_value(url: str, tmp_path: Path) -> None:
    given = write_table(tmp_path / "some.parquet", key=KEYS[:5], x=pa.array([1, 2, None, 4, 5], pa.int8()))
    assert join(url, given, "join.missing=empty") == EXIT_DONE
    dataset = TokenDataset(url)
    assert [row.key for row in dataset.rows(where="x > 1")] == [KEYS[1], KEYS[3], KEYS[4]]
    assert len(list(dataset.rows(where="x is null"))) == NUM_ROWS - 4


def test_conditions_on_joined_columns(url: str, table: str) -> None:
    with pytest.raises(UserError, match="no column aesthetic; expected one of key, label"):
        list(TokenDataset(url).rows(where="aesthetic > 5"))
    assert join(url, table) == EXIT_DONE
    dataset = TokenDataset(url)
    labels = {row.key: row.label for row in dataset.rows()}
    expected = [key for key in KEYS if SCORES[key] > 5 and labels[key] in (1, 2)]
    assert 0 < len(expected) < NUM_ROWS
    text = "aesthetic > 5 and label in (1, 2)"
    assert [row.key for row in dataset.rows(where=text)] == expected
    # A training sees these rows, each once an epoch, at any number of ranks; and is told how many they are.
    numbers = [number for number, row in enumerate(dataset.rows()) if row.key in expected]
    seen = Counter[int]()
    for rank in range(2):
        loader = TokenLoader(
            url, where=text, epochs=1, rows_per_step=4, row_tokens=64, rank=rank, num_ranks=2
        )
        for batch in loader:
            seen.update(batch.sequences.tolist())
    assert seen == Counter(numbers)
    counted = count_chosen(read_training_set(url, where=text))
    tokens = sum(row.num_tokens for row in dataset.rows(where=text))
    assert (counted.num_sequences, counted.num_elements) == (len(expected), tokens + len(expected))
    with pytest.raises(UserError, match="is true of none of the 90 rows"):
        count_chosen(read_training_set(url, where="aesthetic > 50"))
    with pytest.raises(UserError, match=r"no column beauty; expected one of .*aesthetic, text"):
        TokenLoader(url, where="beauty > 1")
    with pytest.raises(UserError, match="column clip holds lists"):
        TokenLoader(url, where="clip > 1")
    # Other conditions are other streams, and columns of another version are not those of an earlier one.
    state = TokenLoader(url, where=text).state_dict()
    with pytest.raises(UserError, match="is one in another stream"):
        TokenLoader(url).load_state_dict(state)
    with pytest.raises(UserError, match="has other joined columns now than version 1"):
        TokenLoader(url, version=1, where=text)
    assert len(list(TokenLoader(url, version=1, where="label=1", epochs=1)))


def test_a_condition_counts_for_every_dataset_of_a_mix(url: str, table: str, tmp_path: Path) -> None:
    """Each by its own joined columns."""
    other = write_dataset(str(tmp_path / "other"), tmp_path, [make_rows(20, first=NUM_ROWS)])
    more = [f"image-{number:06d}" for number in range(NUM_ROWS, NUM_ROWS + 20)]
    scores = write_table(
        tmp_path / "more.parquet", key=more, aesthetic=[float(number) for number in range(20)]
    )
    assert join(url, table, "join.columns=[aesthetic]") == join(other, scores) == EXIT_DONE
    loader = TokenLoader([url, other], where="aesthetic > 6", rows_per_step=4, row_tokens=64)
    seen: tuple[set[int], set[int]] = set(), set()
    for _, batch in zip(range(40), loader, strict=False):
        for source, number in zip(batch.sources.tolist(), batch.sequences.tolist(), strict=True):
            seen[source].add(number)
    assert seen == ({number for number, key in enumerate(KEYS) if SCORES[key] > 6}, set(range(7, 20)))


def test_a_training_is_told_of_a_joined_vector(url: str, table: str) -> None:
    assert join(url, table) == EXIT_DONE
    dataset = read_training_set(url)
    condition = ConditionConfig(
        kind="embedding", embeddings_column="clip", embedding_size=4, drop_condition=0.0
    )
    loader = StepLoader(
        [Source(url, dataset.shards)],
        dataset.spec,
        LoaderConfig(row_tokens=64, rows_per_step=64),
        condition=condition,
        seed=0,
    )
    keys = [row.key for row in TokenDataset(url).rows()]
    given = {row["key"]: row["clip"] for row in pq.read_table(table).to_pylist()}
    step = next(iter(loader))
    seen = 0
    for batch in step.microbatches:
        assert batch.embeddings is not None
        for number, vector in zip(batch.sequences.tolist(), batch.embeddings, strict=True):
            assert vector.tolist() == given[keys[number]]
            seen += 1
    assert seen == step.num_sequences > 0


def test_rows_go_by_joined_columns_and_take_them_along(url: str, table: str, tmp_path: Path) -> None:
    assert join(url, table) == EXIT_DONE
    gone = [key for key in KEYS if SCORES[key] < 3]
    assert main([f"input.url={url}", "remove.where=aesthetic < 3"]) == EXIT_DONE
    left = [key for key in KEYS if key not in gone]
    dataset = TokenDataset(url)
    assert [row.key for row in dataset.rows()] == left
    values = [value for name in dataset.shards for value in dataset.joined(name)["aesthetic"].to_pylist()]
    assert values == [SCORES[key] for key in left]
    beside = [pq.read_table(path)["key"].to_pylist() for path in sorted(Path(url, "columns").iterdir())]
    assert sorted(sum(beside, [])) == left  # nothing of what was removed is kept
    assert not verify_dataset(url)


class Killed(Exception):
    """In place of a signal that nobody handles."""


# Calls after the rows are gone, each with how many of its kind are made before the kill.
@pytest.mark.parametrize(
    ("module", "name", "calls_before"),
    [
        (edit_run, "prune_joined", 0),
        (edit_join, "prune_side_table", 1),
        (edit_join, "write_joined", 0),
        (edit_join, "remove_unused", 0),
        (edit_run, "renew_summary", 0),
        (edit_run, "refresh_index", 1),
        (edit_run, "record_version", 1),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_killed_after_rows_went_the_same_command_ends_as_if_nothing_had_been(
    url: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str,
    calls_before: int,
) -> None:  # fmt: skip
    assert join(url, table) == EXIT_DONE
    undisturbed = str(shutil.copytree(url, tmp_path / "undisturbed"))
    request = "remove.where=aesthetic < 3"
    assert main([f"input.url={undisturbed}", request]) == EXIT_DONE
    call, calls = getattr(module, name), count()

    def dies(*given: Any, **named: Any) -> Any:
        if next(calls) == calls_before:
            raise Killed
        return call(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        with pytest.raises(Killed):
            main([f"input.url={url}", request])
    assert content(url) != content(undisturbed)
    assert main([f"input.url={url}", request]) == EXIT_DONE
    assert content(url) == content(undisturbed) and not verify_dataset(url)


def test_damage_is_found(url: str, table: str) -> None:
    assert join(url, table) == EXIT_DONE
    first, second, _ = sorted(Path(url, "columns").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    Path(url, "columns", "note.txt").write_text("mine")
    found = verify_dataset(url)
    assert Counter(each.kind for each in found) == Counter({Damage.COLUMNS: 2, Damage.FOREIGN: 1})
    with pytest.raises(UserError, match=r"columns/.*; once it and columns/ are removed"):
        list(TokenDataset(url).rows(where="aesthetic > 0"))
    Path(url, "_columns.json").write_text("{")
    assert Damage.COLUMNS in {each.kind for each in verify_dataset(url)}


def test_killed_before_the_commit_nothing_is_changed(
    url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TokenDataset(url).version
    publish, calls = storage.publish_bytes, Counter[str]()

    def dies(data: bytes, place: str, *, exclusive: bool) -> bool:
        if "/columns/" in place:
            calls["files"] += 1
            if calls["files"] > 2:
                raise RuntimeError("killed")
        return publish(data, place, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish_bytes", dies)
        with pytest.raises(RuntimeError):
            join(url, table)
    assert TokenDataset(url).version.digest == before.digest and not read_joined(url).types
    found = verify_dataset(url)
    assert found and all(each.kind == Damage.TEMPORARY and each.is_harmless for each in found)
    assert join(url, table) == EXIT_DONE
    assert not verify_dataset(url)
