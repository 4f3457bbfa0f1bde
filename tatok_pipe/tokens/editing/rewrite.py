"""A token shard without the rows that were removed from its dataset, in the place of the one with them.

As at its commit it is written to a local file, read back and compared, and appears in one step. The rows that stay are
the same, and so is their order; statistics and digest are those of them, so that the file is the one that
tokenize_corpus would make of the image shard now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.records import Quarantined
from tatok_pipe.runs.lease import LEASE
from tatok_pipe.runs.progress_file import PROGRESS_FILE
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokens.checking.check import (
    CorruptShard,
    Damage,
    ShardChecking,
    count_reasons,
    open_shard_file,
    read_checked_quarantine,
    verify_written,
)
from tatok_pipe.tokens.checking.verify import TEMPORARY_NAME
from tatok_pipe.tokens.format import ShardWriter, write_quarantine
from tatok_pipe.tokens.layout import (
    DATA_DIRECTORY,
    INDEX_FILE,
    QUARANTINE_DIRECTORY,
    REMOVED_FILE,
    SUFFIX,
    SUMMARY_FILE,
    VERSIONS_DIRECTORY,
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.removed import Removed
from tatok_pipe.tokens.spec import TokenSpec


@dataclass(frozen=True)
class Rewritten:
    """What is left in a token shard, and how much less that is."""

    num_images: int
    num_tokens: int
    num_images_removed: int
    num_tokens_removed: int
    num_quarantined_removed: int


def rewrite_shard(url: str, name: str, spec: TokenSpec, removed: Removed) -> Rewritten:
    """Take what was removed out of a token shard of the dataset at `url`, and out of its quarantine file.

    The data file first, then the quarantine file: where a kill comes in between, the latter still has what is to go,
    and the same call does the rest. Raises CorruptShard where either is not whole, and then changes nothing: what it
    would be made of is not what was written.
    """
    content = pa.py_buffer(storage.read_bytes(data_url(url, name)))
    with open_shard_file(content, spec=spec) as checking:
        return _rewrite(url, name, checking, removed)


def _rewrite(url: str, name: str, checking: ShardChecking, removed: Removed) -> Rewritten:
    before = checking.metadata
    all_bad = _read_quarantine(url, name, before.statistics.quarantine_reasons, removed)
    bad = [row for row in all_bad if not removed.has(name, row.key)]
    with temporary_folder() as folder:
        path = os.path.join(folder, "data.parquet")
        writer = ShardWriter(path, before.spec, before.source)
        write_changed(
            writer,
            checking,
            lambda table: table.filter(pa.array(~removed.find(name, table["key"].to_pylist()))),
            quarantined=bad,
        )
        storage.publish_file(path, data_url(url, name), exclusive=False)
        if not bad:
            storage.remove(quarantine_url(url, name))
        elif len(bad) < len(all_bad):
            path = os.path.join(folder, "quarantine.parquet")
            write_quarantine(path, bad)
            storage.publish_file(path, quarantine_url(url, name), exclusive=False)
    now = writer.statistics
    return Rewritten(
        num_images=now.num_images,
        num_tokens=now.num_tokens,
        num_images_removed=before.num_rows - now.num_images,
        num_tokens_removed=before.statistics.num_tokens - now.num_tokens,
        num_quarantined_removed=len(all_bad) - len(bad),
    )


def write_changed(
    writer: ShardWriter,
    checking: ShardChecking,
    change: Callable[[pa.Table], pa.Table],
    *,
    quarantined: Sequence[Quarantined],
) -> None:
    """Have the `writer`, and close it, write what `change` makes of the rows of a token shard, a row group at a time,
    and read the file back. Raises CorruptShard where that is not what was written, or the token shard is not whole,
    and what `change` does: then what was written is of no use.
    """
    with writer:
        for table in checking.tables():
            writer.append_table(change(table))
        writer.add_quarantined(quarantined)
    checking.checked()
    verify_written(writer)


def _read_quarantine(url: str, name: str, reasons: dict[str, int], removed: Removed) -> list[Quarantined]:
    """What the quarantine file has; its data file counts `reasons`, before or after what was removed."""
    try:
        rows = read_checked_quarantine(pa.py_buffer(storage.read_bytes(quarantine_url(url, name))))
    except FileNotFoundError:
        rows = []
    left = [row for row in rows if not removed.has(name, row.key)]
    if reasons not in (count_reasons(rows), count_reasons(left)):
        raise CorruptShard(
            f"its quarantine file holds {count_reasons(rows)}, the data file counts {reasons}",
            Damage.QUARANTINE,
        )
    return rows


def remove_leftovers(url: str, names: Collection[str]) -> None:
    """Remove what a killed edit left of files that it was writing: of the token shards `names`, and of the dataset's
    own files. No other job may be writing them."""
    shards = {name + SUFFIX for name in names}
    own = {REMOVED_FILE, INDEX_FILE, SUMMARY_FILE, LEASE, PROGRESS_FILE}
    for directory, files in (
        (DATA_DIRECTORY, shards), (QUARANTINE_DIRECTORY, shards), ("", own), (VERSIONS_DIRECTORY, None)
    ):  # fmt: skip
        folder = storage.join(url, directory) if directory else url
        for file in storage.list_files(folder):
            match = TEMPORARY_NAME.fullmatch(file)
            if match and (files is None or match[1] in files):
                storage.remove(storage.join(folder, file))
