"""A small token dataset with its image shards, and ways to damage its files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.checking.check import verify_written
from tatok_pipe.tokens.commit import commit_shard, committed_shards, plan
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary

NUM_SHARDS = 4
WITH_QUARANTINE = 1  # the number of the shard that has quarantined samples
BAD = [
    Quarantined("bad", "decode", "NotAnImage", "no", 10),
    Quarantined("image-000003", "shard", "DuplicateKey", "twice", 11),
]


@dataclass(frozen=True)
class Made:
    """A dataset of `NUM_SHARDS` shards at `url`, from image shards of random bytes; `work` is for files on the way."""

    url: str
    spec: TokenSpec
    shards: list[str]  # image shards
    work: Path
    records: Callable[..., list[TokenRecord]]

    @property
    def names(self) -> list[str]:
        return [token_shard_name(shard) for shard in self.shards]

    def data(self, number: int) -> str:
        return f"data/{self.names[number]}.parquet"

    def quarantine(self, number: int) -> str:
        return f"quarantine/{self.names[number]}.parquet"

    def read(self, file: str) -> bytes:
        return storage.read_bytes(storage.join(self.url, file))

    def put(self, file: str, content: bytes) -> None:
        storage.publish_bytes(content, storage.join(self.url, file), exclusive=False)

    def remove(self, file: str) -> None:
        storage.remove(storage.join(self.url, file))

    def move(self, file: str, other: str) -> None:
        self.put(other, self.read(file))
        self.remove(file)

    def run(self) -> None:
        """What tokenize_corpus does: the missing shards, then the summary."""
        create_or_check(self.url, self.spec, {"source": "here"})
        for shard in plan(self.shards, committed_shards(self.url)):
            self.write_shard(shard)
        write_summary(self.url, planned=self.names, failed={}, run={"seconds": 1.0})

    def write_shard(self, shard: str, spec: TokenSpec | None = None) -> None:
        number = self.shards.index(shard)
        spec = spec or self.spec
        info = storage.file_info(shard)
        source = ShardSource(storage.redact(shard), info.size_bytes, info.etag)
        quarantined = BAD if number == WITH_QUARANTINE else []
        with ShardWriter(self.work / "data.parquet", spec, source) as writer:
            writer.append(self.records(spec, 10 * number, seed=number))
            writer.add_quarantined(quarantined)
        verify_written(writer)
        write_quarantine(self.work / "quarantine.parquet", quarantined)
        commit_shard(
            self.url,
            token_shard_name(shard),
            self.work / "data.parquet",
            self.work / "quarantine.parquet" if quarantined else None,
            spec=spec,
            source=source,
        )

    def files(self) -> dict[str, str]:
        """SHA-256 of every data and quarantine file."""
        return {
            f"{folder}/{name}": hashlib.sha256(self.read(f"{folder}/{name}")).hexdigest()
            for folder in ("data", "quarantine")
            for name in storage.list_files(storage.join(self.url, folder))
        }

    def rewrite(
        self,
        file: str,
        *,
        rows: Callable[[list[dict[str, Any]]], Any] = lambda rows: None,
        footer: Callable[[dict[bytes, bytes]], Any] = lambda footer: None,
    ) -> None:
        """Change rows, or what our footer says, in an otherwise whole Parquet file."""
        content = pa.BufferReader(self.read(file))
        table = pq.read_table(content)
        values = {
            name: value
            for name, value in (pq.read_metadata(pa.BufferReader(self.read(file))).metadata or {}).items()
            if name.startswith(b"tatok.")
        }
        footer(values)
        changed = table.to_pylist()
        rows(changed)
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(changed, schema=table.schema).replace_schema_metadata(values)
        pq.write_table(table, sink, write_page_checksum=True)
        self.put(file, sink.getvalue().to_pybytes())


def make(base: str, work: Path, spec: TokenSpec, records: Callable[..., list[TokenRecord]]) -> Made:
    shards = []
    for number in range(NUM_SHARDS):
        shards.append(storage.join(base, "images", f"{number:06d}.tar"))
        storage.publish_bytes(bytes([number]) * (1000 + number), shards[-1], exclusive=True)
    made = Made(storage.join(base, "tokens"), spec, shards, work, records)
    made.run()
    return made


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
