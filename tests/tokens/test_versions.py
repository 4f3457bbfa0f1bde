"""A version is what the footers say, has one number, and is read while its token shards are there."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.index_file import Index
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.versions import (
    BrokenVersions,
    find_by_digest,
    find_current,
    find_version,
    read_versions,
    record_version,
)
from tests.token_datasets import TINY, make_rows, write_token_dataset


def index_of(url: str) -> Index:
    return refresh_index(url, TINY)


def record(url: str, by: str = "tokenize_corpus") -> int | None:
    return record_version(url, index_of(url), by=by).number


@pytest.fixture
def grown(tmp_path: Path) -> str:
    """A dataset of version 1 with two shards, and version 2 with three."""
    url = str(tmp_path / "tokens")
    shards = [make_rows(5), make_rows(4, first=5), make_rows(3, first=9)]
    write_token_dataset(url, shards[:2])
    assert find_current(url, index_of(url)).number is None
    assert record(url) == 1
    write_token_dataset(url, shards)
    assert find_current(url, index_of(url)).number is None
    assert record(url) == 2
    return url


def test_a_version_is_recorded_once_and_says_what_came(grown: str) -> None:
    assert record(grown) == 2
    assert sorted(storage.list_files(f"{grown}/_versions")) == ["001.json", "002.json"]
    first, second = (json.loads(Path(grown, "_versions", f"00{n}.json").read_text()) for n in (1, 2))
    names = TokenDataset(grown).shards
    assert (sorted(first["added"]), first["removed"], first["parent"]) == (names[:2], {}, None)
    assert (sorted(second["added"]), second["removed"]) == (names[2:], {})
    assert (second["parent"], second["num_shards"], second["num_rows"]) == (first["digest"], 3, 12)
    assert find_current(grown, index_of(grown)).to_json() == {"version": 2, "digest": second["digest"]}
    assert TokenDataset(grown).version.number == 2


def test_an_older_version_is_read_while_its_files_are_there(grown: str) -> None:
    names = TokenDataset(grown).shards
    assert TokenDataset(grown, version=1).shards == names[:2]
    assert [row.key for row in TokenDataset(grown, version=1).rows()] == [f"image-{n:06d}" for n in range(9)]
    first, second = read_training_set(grown, version=1), read_training_set(grown)
    assert [shard.name for shard in first.shards] == names[:2]
    assert (first.num_sequences, second.num_sequences) == (9, 12)
    assert first.version == TokenDataset(grown, version=1).version
    assert find_by_digest(grown, first.version.digest) == first.version
    storage.remove(data_url(grown, names[2]))
    assert record(grown) == 3
    assert TokenDataset(grown).version.digest == first.version.digest  # its rows are those of version 1
    assert json.loads(Path(grown, "_versions/003.json").read_text())["removed"].keys() == {names[2]}
    with pytest.raises(
        UserError, match=rf"version 2 \(\w+\) cannot be read any more, 1 of its 3 .*{names[2]}"
    ):
        read_training_set(grown, version=2)


def test_a_footer_that_is_another_makes_another_version(grown: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    write_token_dataset(other, [make_rows(5, seed=1)])
    storage.publish_bytes(
        storage.read_bytes(data_url(other, TokenDataset(other).shards[0])),
        data_url(grown, TokenDataset(grown).shards[0]),
        exclusive=False,
    )
    assert find_current(grown, index_of(grown)).number is None
    with pytest.raises(
        UserError, match=r"version 1 .* 1 of its 2 .* what is there now is no recorded version"
    ):
        find_version(grown, 1, index_of(grown))


def test_a_version_that_never_was(grown: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no version 3; it has 1 to 2"):
        TokenDataset(grown, version=3)
    write_token_dataset(str(tmp_path / "new"), [make_rows(2)])
    with pytest.raises(UserError, match="has no version 1; none of it was recorded yet"):
        read_training_set(str(tmp_path / "new"), version=1)


def test_of_many_that_record_at_once_each_gets_a_number(grown: str) -> None:
    index = index_of(grown)
    parts = [Index(index.table.slice(at, 1), index.statistics) for at in (0, 1, 2)] * 2
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda part: record_version(grown, part, by="test"), parts))
    versions = read_versions(grown)  # the chain is whole
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    assert {version.digest for version in versions[2:]} == {
        find_current(grown, part).digest for part in parts
    }


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("001.json", b"{", "001.json: is broken"),
        ("001.json", b"[]", "001.json: is broken"),
        ("002.json", None, "002.json: is missing"),
        ("001.json", {"format": 2}, "format 2, this program reads 1"),
        ("002.json", {"parent": "x"}, "its parent is not the version before"),
        ("002.json", {"removed": {"nobody": "x"}}, "removes nobody, which the version before has not so"),
        ("002.json", {"added": {}}, "its digest is not that of its token shards"),
    ],
)
def test_a_chain_that_is_not_whole_is_told(
    grown: str, file: str, content: bytes | dict | None, told: str
) -> None:
    write_token_dataset(grown, [make_rows(1)] * 4)
    assert record(grown) == 3
    path = Path(grown, "_versions", file)
    if content is None:
        path.unlink()
    else:
        given = (
            content
            if isinstance(content, bytes)
            else json.dumps(json.loads(path.read_text()) | content).encode()
        )
        path.write_bytes(given)
    with pytest.raises(BrokenVersions, match=told) as caught:
        read_versions(grown)
    assert "\n" not in str(caught.value)
    assert [(each.kind, each.file) for each in verify_dataset(grown)] == [
        (Damage.VERSIONS, caught.value.file)
    ]


@pytest.mark.s3
def test_on_s3(s3_url: str) -> None:
    write_token_dataset(s3_url, [make_rows(5)])
    assert [record(s3_url), record(s3_url)] == [1, 1]
    write_token_dataset(s3_url, [make_rows(5), make_rows(4, first=5)])
    assert record(s3_url) == 2
    assert len(TokenDataset(s3_url, version=1).shards) == 1
