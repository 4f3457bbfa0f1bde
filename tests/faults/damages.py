"""The table of damages: what is done to a file of a token dataset, and what `--verify` has to call it.

Every damage has token shards of its own, so that many can be planted at once. `S` in a file stands for their name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe.tokens.format import ShardWriter, empty_statistics, parse_footer, read_records

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Planted:
    """Where a damage is to be done: a dataset, and the names of the token shards that it may touch."""

    output: Path
    names: list[str]

    def data(self, which: int = 0) -> Path:
        return self.output / "data" / f"{self.names[which]}.parquet"

    def quarantine(self, which: int = 0) -> Path:
        return self.output / "quarantine" / f"{self.names[which]}.parquet"

    def rewrite(
        self, change: Callable[[Rows], Any] | None = None, *, counted: bool = True,
        footer: Callable[[dict[bytes, bytes]], Any] | None = None, checksums: bool = True,
    ) -> None:  # fmt: skip
        """Change rows and, where `counted`, the statistics in the footer, so that they agree."""
        path = self.data()
        table, metadata = pq.read_table(path), pq.read_metadata(path)
        values = {key: value for key, value in metadata.metadata.items() if key.startswith(b"tatok.")}
        rows = table.to_pylist()
        if change is not None:
            change(rows)
        table = pa.Table.from_pylist(rows, schema=table.schema)
        if counted and change is not None:
            told = parse_footer(metadata, "x")
            statistics = empty_statistics(told.spec)
            statistics.update_from_table(table.combine_chunks())
            statistics.bytes_in = told.source.size_bytes
            statistics.num_quarantined = told.statistics.num_quarantined
            statistics.quarantine_reasons = told.statistics.quarantine_reasons
            values[b"tatok.statistics"] = json.dumps(statistics.to_json()).encode()
        if footer is not None:
            footer(values)
        pq.write_table(
            table.replace_schema_metadata(values), path, compression="zstd", write_page_checksum=checksums
        )


@dataclass(frozen=True)
class Damage:
    """A row of the table."""

    do: Callable[[Planted], Any]
    found: dict[str, str]  # file -> kind
    num_shards: int = 1
    stays: frozenset[str] = field(
        default_factory=frozenset
    )  # files that repair leaves, because they may be the user's


def rows(change: Callable[[Rows], Any], kind: str, *, counted: bool = True) -> Damage:
    return Damage(lambda planted: planted.rewrite(change, counted=counted), {"data/S0.parquet": kind})


def exchange(r: Rows) -> None:
    for name in ("global_codes", "patch_codes", "patch_positions", "num_tokens"):
        r[0][name], r[1][name] = r[1][name], r[0][name]


def reverse_positions(r: Rows) -> None:
    row = next(row for row in r if len(row["patch_positions"]) > 1)
    row["patch_positions"] = row["patch_positions"][::-1]


def change_code(r: Rows, value: Callable[[int], int]) -> None:
    r[0]["global_codes"][0] = value(r[0]["global_codes"][0])


def forge(planted: Planted) -> None:
    """A row less, and a footer that agrees in everything."""
    path = planted.data()
    told = parse_footer(pq.read_metadata(path), "x")
    with ShardWriter(path.with_suffix(".new"), told.spec, told.source) as writer:
        writer.append(read_records(path)[:-1])
        writer.statistics.num_quarantined = told.statistics.num_quarantined
        writer.statistics.quarantine_reasons = told.statistics.quarantine_reasons
    path.with_suffix(".new").rename(path)


def flip(path: Path) -> None:
    """One bit in the middle of the pages of codes, where no padding is, and the file has the time that it had."""
    group = pq.read_metadata(path).row_group(0)
    chunk = next(
        each for each in map(group.column, range(group.num_columns)) if "patch_codes" in each.path_in_schema
    )
    end = chunk.total_compressed_size + min(
        filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))
    )
    times, content = os.stat(path), bytearray(path.read_bytes())
    content[end - chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip_unchecked(planted: Planted) -> None:
    planted.rewrite(checksums=False)
    flip(planted.data())


def name_other_tokenizer(values: dict[bytes, bytes]) -> None:
    values[b"tatok.tokenizer_fingerprint"] = json.dumps("f" * 64).encode()


def swap(planted: Planted) -> None:
    first, second = planted.data(0).read_bytes(), planted.data(1).read_bytes()
    planted.data(0).write_bytes(second)
    planted.data(1).write_bytes(first)


def put(path: Path, content: bytes, *, age_s: float = 0.0) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_index(planted: Planted, column: str) -> None:
    """Two rows lie, and their sum is right."""
    path = planted.output / "_index.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[0], values[1] = values[0] + 1, values[1] - 1
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values)), path)


DATA = "data/S0.parquet"
HOUR_S = 3700.0
BY_SHARD: dict[str, Damage] = {
    "positions out of order": rows(reverse_positions, "rows"),
    "a code beyond the vocabulary": rows(lambda r: change_code(r, lambda code: 60000), "rows", counted=False),
    "another number of tokens": rows(lambda r: r[0].update(num_tokens=r[0]["num_tokens"] + 1), "rows"),
    "an entropy that is no number": rows(lambda r: r[0].update(entropy_total=float("nan")), "rows", counted=False),
    "a negative crop": rows(lambda r: r[0].update(crop=-5), "rows"),
    "no width": rows(lambda r: r[0].update(width=0), "rows"),
    "a negative height": rows(lambda r: r[1].update(height=-4), "rows"),
    "an empty key": rows(lambda r: r[0].update(key=""), "rows"),
    "metadata that is no JSON": rows(lambda r: r[1].update(meta="{not json"), "rows"),
    "a key twice": rows(lambda r: r[1].update(key=r[0]["key"]), "keys"),
    "a row less": rows(lambda r: r.pop(), "statistics", counted=False),
    "a row less, counted": rows(lambda r: r.pop(), "content"),
    "a row more, counted": rows(lambda r: r.append({**r[0], "key": "intruder"}), "content"),
    "rows in reverse": rows(lambda r: r.reverse(), "content"),
    "tokens of two rows exchanged": rows(exchange, "content"),
    "another code, counted": rows(lambda r: change_code(r, lambda code: code ^ 1), "content"),
    "another label": rows(lambda r: r[0].update(label=77), "content", counted=False),
    "another caption": rows(lambda r: r[0].update(caption="c"), "content", counted=False),
    "another size": rows(lambda r: r[0].update(width=r[0]["width"] + 1), "content", counted=False),
    "another crop": rows(lambda r: r[0].update(crop=3), "content", counted=False),
    "a row less, and a footer that agrees": Damage(forge, {DATA: "content"}),
    "no bytes": Damage(lambda p: p.data().write_bytes(b""), {DATA: "unreadable"}),
    "half of the bytes": Damage(
        lambda p: p.data().write_bytes(p.data().read_bytes()[: p.data().stat().st_size // 2]), {DATA: "unreadable"}
    ),
    "a bit, with the time kept": Damage(lambda p: flip(p.data()), {DATA: "unreadable"}),
    "another footer's tokenizer": Damage(lambda p: p.rewrite(footer=name_other_tokenizer), {DATA: "spec"}),
    "a footer without ours": Damage(lambda p: p.rewrite(footer=lambda values: values.clear()), {DATA: "unreadable"}),
    "a digest that is another": Damage(
        lambda p: p.rewrite(footer=lambda values: values.update({b"tatok.content_digest": b'"00"'})), {DATA: "content"}
    ),
    "two files exchanged": Damage(swap, {DATA: "name", "data/S1.parquet": "name"}, num_shards=2),
    "a copy under another name": Damage(
        lambda p: put(p.output / "data/copy-0a0a0a0a.parquet", p.data().read_bytes()),
        {"data/copy-0a0a0a0a.parquet": "name"},
    ),
    "deleted": Damage(lambda p: p.data().unlink(), {DATA: "lost", "quarantine/S0.parquet": "orphan"}),
    "a name in capitals": Damage(
        lambda p: p.data().rename(p.data().with_suffix(".PARQUET")),
        {DATA: "lost", "data/S0.PARQUET": "foreign", "quarantine/S0.parquet": "orphan"},
        stays=frozenset({"data/S0.PARQUET"}),
    ),
    "no quarantine file": Damage(lambda p: p.quarantine().unlink(), {"quarantine/S0.parquet": "quarantine"}),
    "a broken quarantine file": Damage(
        lambda p: p.quarantine().write_bytes(b"PAR1"), {"quarantine/S0.parquet": "quarantine"}
    ),
    "the rows as quarantine": Damage(
        lambda p: p.quarantine().write_bytes(p.data().read_bytes()), {"quarantine/S0.parquet": "quarantine"}
    ),
    "a quarantine file of nobody": Damage(
        lambda p: put(p.output / "quarantine/000099-00000000.parquet", b"", age_s=HOUR_S),
        {"quarantine/000099-00000000.parquet": "orphan"}, num_shards=0,
    ),
    "left by a killed writer": Damage(
        lambda p: put(p.output / f"data/.x.parquet.{'a' * 16}.tmp", b"x", age_s=HOUR_S),
        {f"data/.x.parquet.{'a' * 16}.tmp": "temporary"}, num_shards=0,
    ),
    "a Parquet file of others": Damage(
        lambda p: pq.write_table(pa.table({"a": [1]}), p.output / "data/other.parquet"),
        {"data/other.parquet": "foreign"}, num_shards=0, stays=frozenset({"data/other.parquet"}),
    ),
    "a text": Damage(
        lambda p: put(p.output / "data/readme.txt", b"x"), {"data/readme.txt": "foreign"}, num_shards=0,
        stays=frozenset({"data/readme.txt"}),
    ),
    "a folder": Damage(
        lambda p: put(p.output / "data/sub/a.parquet", b""), {"data/sub/": "foreign"}, num_shards=0,
        stays=frozenset({"data/sub/"}),
    ),
}  # fmt: skip
SUMMARY, INDEX, DATASET = "_summary.json", "_index.parquet", "_dataset.json"
# Of files that a dataset has once: one at a time.
ALONE: dict[str, Damage] = {
    "a bit where pages have no checksum": Damage(flip_unchecked, {DATA: "unreadable|content|rows|statistics|keys"}),
    "a count in the summary": Damage(
        lambda p: edit_json(p.output / SUMMARY, lambda s: s["statistics"].update(num_images=1)), {SUMMARY: "summary"}
    ),
    "a figure in the summary": Damage(
        lambda p: edit_json(p.output / SUMMARY, lambda s: s["figures"].update(mean_tokens=1.0)), {SUMMARY: "summary"}
    ),
    "planned shards in the summary": Damage(
        lambda p: edit_json(p.output / SUMMARY, lambda s: s.update(num_shards_planned=99)), {SUMMARY: "summary"}
    ),
    "no index in the index": Damage(lambda p: put(p.output / INDEX, b"PAR1garbage"), {INDEX: "index"}),
    "tokens in the index": Damage(lambda p: edit_index(p, "num_tokens"), {INDEX: "index"}),
    "sources in the index": Damage(lambda p: edit_index(p, "source_size_bytes"), {INDEX: "index"}),
    "a threshold": Damage(
        lambda p: edit_json(p.output / DATASET, lambda s: s["spec"]["dtf"].update(value=9.0)), {DATASET: "dataset"}
    ),
    "a vocabulary": Damage(
        lambda p: edit_json(p.output / DATASET, lambda s: s["spec"].update(patch_vocab=4096)), {DATASET: "dataset"}
    ),
    "no description": Damage(
        lambda p: edit_json(p.output / DATASET, lambda s: s.pop("description")), {DATASET: "dataset"}
    ),
}  # fmt: skip
