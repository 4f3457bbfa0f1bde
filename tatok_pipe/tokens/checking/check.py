"""Whether a token shard or quarantine file is whole and says what it should: before its commit, and at any time after.

Nothing here trusts the file. Pages are read with their checksums, the schema and the footer are compared with what
they must be, every row is held against the rules of format 3, and the statistics and the digest of the
content are made again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow as pa

from tatok_pipe.errors import UserError
from tatok_pipe.records import Quarantined
from tatok_pipe.tokens.digest import ContentDigest
from tatok_pipe.tokens.format import ShardMetadata, ShardWriter, empty_statistics, parse_footer
from tatok_pipe.tokens.invariants import check_table
from tatok_pipe.tokens.shard_file import ShardFile
from tatok_pipe.tokens.spec import TokenSpec, quarantine_schema, token_schema

Source = str | os.PathLike[str] | pa.Buffer  # a local file, or the content of any


class Damage(StrEnum):
    """What can be wrong with a file of a token dataset."""

    # of a token shard
    UNREADABLE = "unreadable"  # no whole Parquet file, a broken page, or a footer that is not ours
    SCHEMA = "schema"  # other columns than format 3 has
    SPEC = "spec"  # made by another tokenizer, or with other settings
    ROWS = "rows"  # a row breaks a rule of the format
    KEYS = "keys"  # a key comes twice
    STATISTICS = "statistics"  # the footer's figures are not those of the rows
    CONTENT = "content"  # the rows are not those that were given to be written
    NAME = "name"  # not the name of the token shard of its image shard
    QUARANTINE = "quarantine"  # its quarantine file is missing, broken, or of other samples
    # of other files
    UNREACHABLE = "unreachable"  # could not be looked at, so nothing is known
    FOREIGN = "foreign"  # not of this dataset
    ORPHAN = "orphan"  # a quarantine file without data file
    TEMPORARY = "temporary"  # what a killed program left of a file that it was writing
    DATASET = "dataset"  # `_dataset.json` is broken, or says of all token shards what they are not
    LOST = "lost"  # a token shard that was there is gone
    INDEX = "index"  # `_index.parquet` is broken, or says of a token shard what it is not
    REMOVED = "removed"  # a row that was removed is there again, or `_removed.parquet` is broken
    VERSIONS = "versions"  # a file of `_versions/` is broken or missing
    COLUMNS = (
        "columns"  # `_columns.json`, or a file of joined columns, is broken or missing, or nobody names it
    )
    SUMMARY = "summary"  # `_summary.json` is broken, or counts what is not there


class CorruptShard(Exception):
    """A file that must not be trusted. The message is one line; `damage` is its kind."""

    def __init__(self, message: str, damage: Damage) -> None:
        super().__init__(message, damage)  # both, so that it comes whole out of a pickle
        self.damage = damage

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class CheckedShard:
    """What was found in a shard that is whole."""

    metadata: ShardMetadata
    content_digest: str  # `ContentDigest` of its rows
    keys: list[str] = field(repr=False)  # of the rows, in order


class ShardChecking:
    """A token shard whose rows are checked as they are read: nothing is known to be whole before the last of them has
    been, and `checked` was called."""

    def __init__(self, file: ShardFile, metadata: ShardMetadata) -> None:
        self.metadata = metadata
        self._file = file
        self._statistics, self._digest = empty_statistics(metadata.spec), ContentDigest()
        self._keys: list[str] = []
        self._crops: list[int] = []

    def tables(self) -> Iterator[pa.Table]:
        """Its row groups. Raises CorruptShard at the first that is not as it should be."""
        for group in range(self._file.num_row_groups):
            try:
                table = self._file.read([group]).combine_chunks()
                table.validate(full=True)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise CorruptShard(
                    f"row group {group} cannot be read: {_one_line(error)}", Damage.UNREADABLE
                ) from error
            try:
                check_table(table, self.metadata.spec)
            except ValueError as error:
                raise CorruptShard(str(error), Damage.ROWS) from error
            self._statistics.update_from_table(table)
            self._digest.update_from_table(table)
            self._keys += table.column("key").to_pylist()
            self._crops += table.column("crop").to_pylist()
            yield table

    def checked(self) -> CheckedShard:
        """Once all tables were read: all of it. Raises CorruptShard where they are not what the footer says."""
        metadata, statistics = self.metadata, self._statistics
        _check_keys(self._keys, self._crops)
        _check_crops(self._keys, self._crops, metadata.spec.crops_per_image)
        # What the rows cannot tell: the size of the source stands beside, the quarantined are in a file of their own.
        statistics.bytes_in = metadata.source.size_bytes
        statistics.num_quarantined = sum(metadata.statistics.quarantine_reasons.values())
        statistics.quarantine_reasons = metadata.statistics.quarantine_reasons
        _compare_statistics(metadata, statistics.differences(metadata.statistics))
        if (found := self._digest.hexdigest()) != metadata.content_digest:
            raise CorruptShard(
                f"its rows have digest {found[:12]}, its footer says {metadata.content_digest[:12]}: they are not "
                "those that were written, or not in their order",
                Damage.CONTENT,
            )
        return CheckedShard(metadata, found, self._keys)


def verify_shard_file(
    source: Source, *, spec: TokenSpec | None = None, num_rows: int | None = None
) -> CheckedShard:
    """Read a whole token shard and check all of it, with `spec` and `num_rows` where they are known.

    Raises CorruptShard for what is wrong first; FileNotFoundError and other errors of the system where a local file
    cannot be read. Holds one row group, the keys, and no more of a local file.
    """
    with open_shard_file(source, spec=spec, num_rows=num_rows) as checking:
        for _ in checking.tables():
            pass
        return checking.checked()


@contextmanager
def open_shard_file(
    source: Source, *, spec: TokenSpec | None = None, num_rows: int | None = None
) -> Iterator[ShardChecking]:
    """The same for who needs the rows: they are read once. Raises as it does for all but the rows themselves."""
    with _open(source) as file:
        try:
            metadata = parse_footer(file.metadata, "footer")
        except UserError as error:
            raise CorruptShard(_one_line(error), Damage.UNREADABLE) from error
        if spec is not None and (differences := metadata.spec.differences(spec)):
            raise CorruptShard(f"made with other settings: {'; '.join(differences)}", Damage.SPEC)
        _check_schema(file, token_schema(metadata.spec))
        if num_rows is not None and metadata.num_rows != num_rows:
            raise CorruptShard(f"{metadata.num_rows} rows, expected {num_rows}", Damage.CONTENT)
        yield ShardChecking(file, metadata)


def verify_written(writer: ShardWriter) -> CheckedShard:
    """Read back what a closed `writer` left and make sure that it is what the writer was given.

    Raises CorruptShard as `verify_shard_file` does, and where a row, the source or a figure in the file is not the
    one that went in. Call it before the file is published.
    """
    found = verify_shard_file(writer.path, spec=writer.spec, num_rows=writer.statistics.num_images)
    if found.metadata.source != writer.source:
        raise CorruptShard(
            f"its source is {found.metadata.source}, {writer.source} was given", Damage.CONTENT
        )
    _compare_statistics(found.metadata, writer.statistics.differences(found.metadata.statistics))
    if found.content_digest != writer.content_digest:
        raise CorruptShard(
            f"its rows have digest {found.content_digest[:12]}, those given to be written "
            f"{writer.content_digest[:12]}; the memory or the disk of this machine may be at fault",
            Damage.CONTENT,
        )
    return found


def read_checked_quarantine(source: Source) -> list[Quarantined]:
    """The rows of a quarantine file. Raises CorruptShard where it is not whole."""
    with _open(source) as file:
        _check_schema(file, quarantine_schema())
        try:
            return [Quarantined(**row) for row in file.read(range(file.num_row_groups)).to_pylist()]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptShard(f"cannot be read: {_one_line(error)}", Damage.UNREADABLE) from error


def count_reasons(rows: list[Quarantined]) -> dict[str, int]:
    """Error class -> samples, as the statistics of the shard have it."""
    return dict(Counter(row.error for row in rows))


@contextmanager
def _open(source: Source) -> Iterator[ShardFile]:
    with closing(pa.BufferReader(source) if isinstance(source, pa.Buffer) else open(source, "rb")) as file:
        yield _open_file(file)


def _open_file(file: Any) -> ShardFile:
    try:
        return ShardFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not Arrow's: the file could not be looked at
        raise CorruptShard(f"is no whole Parquet file: {_one_line(error)}", Damage.UNREADABLE) from error


def _check_schema(file: ShardFile, expected: pa.Schema) -> None:
    try:
        found = file.schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptShard(f"its schema cannot be read: {_one_line(error)}", Damage.UNREADABLE) from error
    for place, (mine, theirs) in enumerate(zip(found, expected, strict=False)):
        if not mine.equals(theirs):
            raise CorruptShard(
                f"column {place + 1} is `{_show(mine)}`, expected `{_show(theirs)}`", Damage.SCHEMA
            )
    if len(found) != len(expected):
        raise CorruptShard(f"{len(found)} columns, expected {len(expected)}", Damage.SCHEMA)


def _check_keys(keys: list[str], crops: list[int]) -> None:
    counts = Counter(zip(keys, crops, strict=True))
    if len(counts) < len(keys):
        (key, crop), number = counts.most_common(1)[0]
        raise CorruptShard(f"key {key!r}, crop {crop}, comes {number} times", Damage.KEYS)


def _check_crops(keys: list[str], crops: list[int], per_image: int) -> None:
    """All crops of an image have to stand together, by number, where the dataset says how many there are."""
    if per_image == 1:
        return
    for start in range(0, len(keys), per_image):
        rows = slice(start, start + per_image)
        if len({*keys[rows]}) > 1 or crops[rows] != list(range(per_image)):
            raise CorruptShard(
                f"rows {start} to {start + len(keys[rows]) - 1} begin with key {keys[start]!r} and have crops "
                f"{_show_numbers(crops[rows])}, expected 0 to {per_image - 1} of one image",
                Damage.ROWS,
            )


def _show_numbers(numbers: list[int], most: int = 16) -> str:
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")


def _compare_statistics(metadata: ShardMetadata, differences: list[str]) -> None:
    if differences:
        raise CorruptShard(
            f"the statistics in its footer are not those of its {metadata.num_rows} rows "
            f"(counted again, {'; '.join(differences)})",
            Damage.STATISTICS,
        )


def _show(column: pa.Field) -> str:
    return f"{column.name}: {column.type}{'' if column.nullable else ' not null'}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
