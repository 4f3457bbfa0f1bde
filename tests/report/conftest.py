"""A token dataset on disk, written shard by shard, and real image shards to go with it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.spec import TokenSpec

Rows = list[TokenRecord] | tuple[list[TokenRecord], list[Quarantined]]
MakeDataset = Callable[..., TokenDataset]
WriteTar = Callable[[Path, Mapping[str, bytes]], str]


@pytest.fixture
def write_tar() -> WriteTar:
    """`write_tar(path, {name: data})`: a tar with these members, in order; gives its path as text."""

    def write(path: Path, members: Mapping[str, bytes]) -> str:
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        return str(path)

    return write


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """`make_dataset(spec, {image shard: rows or (rows, quarantined)})`: the dataset, committed and open."""

    def make(spec: TokenSpec, shards: Mapping[str, Rows]) -> TokenDataset:
        url = str(tmp_path / "tokens")
        create_or_check(url, spec, {"tokenizer": {"checkpoint": "nowhere"}})
        for shard, rows in shards.items():
            records, quarantined = rows if isinstance(rows, tuple) else (rows, [])
            size = storage.file_info(shard).size_bytes if Path(shard).is_file() else 1000
            source = ShardSource(shard, size)
            with ShardWriter(tmp_path / "data.parquet", spec, source) as writer:
                writer.append(records)
                writer.add_quarantined(quarantined)
            if quarantined:
                write_quarantine(tmp_path / "quarantine.parquet", quarantined)
            commit_shard(
                url,
                token_shard_name(shard),
                tmp_path / "data.parquet",
                tmp_path / "quarantine.parquet" if quarantined else None,
                spec=spec,
                source=source,
            )
        return TokenDataset(url)

    return make
