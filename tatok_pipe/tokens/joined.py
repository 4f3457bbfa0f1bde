"""Columns that were joined to the rows of a token dataset after they were tokenized: scores, captions, embeddings.

They lie beside the token shards, which stay as they are: a Parquet file for each, with a row for each of its keys, and
named by its content. `_columns.json` says which files count, so that all columns come and go in one step. A row is
found by its key, so it keeps its values when others are removed, and one that came since has none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.layout import COLUMNS_DIRECTORY, COLUMNS_FILE, SUFFIX, to_json_file
from tatok_pipe.tokens.loading.parquet_groups import open_parquet, read_groups

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

FORMAT = 1
KEY = "key"
_MARK_DIGITS = 16
_LIST = re.compile(r"list<(\w+)>")
FILE_NAME = re.compile(rf"(.+)\.([0-9a-f]{{{_MARK_DIGITS}}})\.parquet")
_SCALARS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "halffloat", "float", "double",
    "string",
)  # fmt: skip
KEPT_TYPES = "truth values, whole numbers, floats, text, and lists of numbers of one level"


class BrokenColumns(UserError):
    """`_columns.json`, or a file that it names, does not say what it should."""

    advice = (
        "once it and columns/ are removed, edit_tokens join.table=… joins anew; the tokens are as they were"
    )

    def __init__(self, url: str, file: str, reason: object) -> None:
        self.file, self.reason = file, " ".join(str(reason).split())
        super().__init__(f"{storage.redact(storage.join(url, file))}: {self.reason}; {self.advice}")


@dataclass(frozen=True)
class Joined:
    """Which columns were joined to a dataset, and where they are."""

    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)  # token shard -> mark of its file

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, 64 hex digits; empty where nothing was joined."""
        return hashlib.sha256(self.to_json_file()).hexdigest() if self.types else ""

    @property
    def schema(self) -> pa.Schema:
        """The columns without the key."""
        return pa.schema([pa.field(name, self.types[name]) for name in sorted(self.types)])

    def to_json_file(self) -> bytes:
        columns = {name: _name_type(data_type) for name, data_type in self.types.items()}
        return to_json_file({"format": FORMAT, "columns": columns, "tables": dict(self.tables)})


def kept_type(data_type: pa.DataType) -> pa.DataType | None:
    """As what a column of this type is kept; None where it is not."""
    if pa.types.is_dictionary(data_type):
        return kept_type(data_type.value_type)
    if pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type):
        return pa.string()
    if (
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
    ):
        value = kept_type(data_type.value_type)
        is_number = value is not None and (pa.types.is_integer(value) or pa.types.is_floating(value))
        return _list_of(value) if is_number else None
    return data_type if str(data_type) in _SCALARS else None


def read_joined(url: str) -> Joined:
    """What was joined to the dataset at `url`; nothing where there is no such file. Raises BrokenColumns."""
    try:
        content = json.loads(storage.read_bytes(storage.join(url, COLUMNS_FILE)))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this program reads {FORMAT}")
        types = {name: _parse_type(text) for name, text in content["columns"].items()}
        return Joined(types, {str(name): str(mark) for name, mark in content["tables"].items()})
    except FileNotFoundError:
        return Joined()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenColumns(url, COLUMNS_FILE, f"is broken ({type(error).__name__}: {error})") from error


def write_joined(url: str, joined: Joined) -> None:
    """From here on these are the columns of the dataset; the files that it names must be there."""
    storage.publish_bytes(joined.to_json_file(), storage.join(url, COLUMNS_FILE), exclusive=False)


def columns_file(shard: str, mark: str) -> str:
    """The file of a token shard, below the dataset."""
    return f"{COLUMNS_DIRECTORY}/{shard}.{mark}{SUFFIX}"


def mark_of(content: bytes) -> str:
    """What the file with this content is named by."""
    return hashlib.sha256(content).hexdigest()[:_MARK_DIGITS]


def to_file(table: pa.Table) -> bytes:
    """A table of columns as a Parquet file: equal tables, equal bytes."""
    sink = pa.BufferOutputStream()
    table = table.combine_chunks()  # how it was read is nobody's business
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_table(url: str, joined: Joined, shard: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The key, and these columns or all, of a token shard, of whose file only their bytes are read; None where nothing
    was joined to it. Raises BrokenColumns where the file is missing or not what it was."""
    if shard not in joined.tables:
        return None
    file = columns_file(shard, joined.tables[shard])
    names = [KEY, *(joined.schema.names if columns is None else columns)]
    try:
        with open_parquet(storage.join(url, file)) as (parquet, source):
            return read_groups(parquet, source, list(range(parquet.num_row_groups)), names)
    except FileNotFoundError:
        raise BrokenColumns(url, file, "is not there") from None
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise BrokenColumns(url, file, error) from error


def read_content(url: str, joined: Joined, shard: str) -> bytes:
    """The file of a token shard. Raises BrokenColumns where it is missing, or is not what was written by its
    SHA-256."""
    file = columns_file(shard, joined.tables[shard])
    try:
        content = storage.read_bytes(storage.join(url, file))
    except FileNotFoundError:
        raise BrokenColumns(url, file, "is not there") from None
    if mark_of(content) != joined.tables[shard]:
        raise BrokenColumns(url, file, "is not what was written, by its SHA-256")
    return content


def check_table(url: str, joined: Joined, shard: str) -> pa.Table:
    """All of the file of a token shard. Raises BrokenColumns as `read_content`, and where it has other columns."""
    table = pq.read_table(pa.BufferReader(read_content(url, joined, shard)))
    if table.schema != pa.schema([pa.field(KEY, pa.string()), *joined.schema]):
        file = columns_file(shard, joined.tables[shard])
        raise BrokenColumns(
            url, file, f"has columns {table.schema.names}, expected key and {joined.schema.names}"
        )
    return table


def read_columns(url: str, joined: Joined, shard: str, keys: pa.Array, columns: Sequence[str]) -> pa.Table:
    """These columns of the rows with the `keys`, in order, without the key; null where a key has no value. Raises as
    `read_table`."""
    schema = pa.schema([joined.schema.field(name) for name in columns])
    table = read_table(url, joined, shard, columns)
    if table is None:
        return pa.table([pa.nulls(len(keys), each.type) for each in schema], schema=schema)
    places = pc.index_in(keys, value_set=table[KEY].combine_chunks())
    return table.select(list(columns)).take(places).cast(schema)


def _list_of(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value))  # the name that Parquet gives it


def _name_type(data_type: pa.DataType) -> str:
    return f"list<{data_type.value_type}>" if pa.types.is_list(data_type) else str(data_type)


def _parse_type(text: str) -> pa.DataType:
    if match := _LIST.fullmatch(text):
        return _list_of(_parse_type(match[1]))
    if text not in _SCALARS:
        raise ValueError(f"type {text}")
    return pa.type_for_alias(text)
