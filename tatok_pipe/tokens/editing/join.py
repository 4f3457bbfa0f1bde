"""Columns of a user's table, joined by key to the rows of a token dataset.

The table is read into memory with the columns that are asked for. A key of it is that of a row, or `TOKEN_SHARD/KEY`,
which a key that several token shards have needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.editing.where import KEYWORDS, is_column_name
from tatok_pipe.tokens.format import damage_told
from tatok_pipe.tokens.joined import (
    KEPT_TYPES,
    KEY,
    Joined,
    columns_file,
    kept_type,
    mark_of,
    read_columns,
    read_table,
    to_file,
)
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.parquet_groups import open_parquet, read_groups
from tatok_pipe.tokens.removed import Removed
from tatok_pipe.tokens.shard_file import open_shard

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

_NO_ROW = -1


@dataclass(frozen=True)
class JoinTable:
    """Columns by key, in memory."""

    shown: str  # its URL, for people
    columns: pa.Table  # without the key
    places: Mapping[str, int]  # row of each key

    def find(self, shard: str, keys: Sequence[str]) -> np.ndarray:
        """The row for each key of a token shard, (n,) int64; -1 where there is none."""
        get = self.places.get
        return np.array([get(f"{shard}/{key}", get(key, _NO_ROW)) for key in keys], np.int64)


def read_join_table(url: str, *, key: str, columns: Sequence[str], taken: Sequence[str]) -> JoinTable:
    """The table at `url`, a Parquet file or a folder of them. `columns` are those to be joined, all of them where it is
    empty; `taken` are names that columns of the dataset have.

    Raises UserError, one line, where it cannot be read, a column is missing, has a name or type that cannot be kept, or
    a key is null or comes twice.
    """
    shown = storage.redact(url)
    schema = _read_schema(url, shown)
    wanted = list(columns) or [name for name in schema.names if name != key]
    _check_columns(schema, shown, key=key, wanted=wanted, taken=taken)
    table = pa.concat_tables([_read_file(each, [key, *wanted], schema) for each in _files(url, shown)])
    keys = table[key].cast(pa.string()).to_pylist()
    places = {name: row for row, name in enumerate(keys)}
    if None in places:
        raise UserError(f"join.table={shown}: {keys.count(None)} rows have no {key}; expected one in each")
    if len(places) < len(keys):
        first = next(name for row, name in enumerate(keys) if places[name] != row)
        num_more = len(keys) - len(places)
        raise UserError(
            f"join.table={shown}: {num_more} keys come more than once, first {first!r}; expected each once, or "
            "TOKEN_SHARD/KEY where several token shards have it"
        )
    kept = [table[name].cast(kept_type(schema.field(name).type)) for name in wanted]
    return JoinTable(shown, pa.table(kept, names=wanted), places)


def _files(url: str, shown: str) -> list[str]:
    if url.endswith(".parquet"):
        return [url]
    try:
        names = sorted(name for name in storage.list_files(url) if name.endswith(".parquet"))
    except NotADirectoryError:
        names = []
    if not names:
        raise UserError(f"join.table={shown}: no Parquet file there; expected one, or a folder of them")
    return [storage.join(url, name) for name in names]


def _read_schema(url: str, shown: str) -> pa.Schema:
    with _told(place := _files(url, shown)[0]), open_parquet(place) as (file, _):
        return file.schema_arrow


@contextmanager
def _told(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"join.table={storage.redact(place)}: not found; expected a Parquet file, or a folder of them"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        told = " ".join(storage.redact(str(error)).split())
        raise UserError(
            f"join.table={storage.redact(place)}: cannot be read ({told}); expected a Parquet file"
        ) from error


def _read_file(place: str, names: list[str], schema: pa.Schema) -> pa.Table:
    with _told(place), open_parquet(place) as (file, source):
        for name in names:
            found = file.schema_arrow.field(name).type if name in file.schema_arrow.names else "missing"
            if found != schema.field(name).type:
                raise UserError(
                    f"join.table={storage.redact(place)}: column {name} is {found}, in the first file "
                    f"{schema.field(name).type}; expected the same columns in all"
                )
        return read_groups(file, source, list(range(file.num_row_groups)), names).select(names)


def _check_columns(
    schema: pa.Schema, shown: str, *, key: str, wanted: Sequence[str], taken: Sequence[str]
) -> None:
    if len(set(wanted)) < len(wanted):
        raise UserError(f"join.columns=[{', '.join(wanted)}]: names a column twice; give each once")
    for option, name in [("join.key", key), *(("join.columns", name) for name in wanted)]:
        if schema.names.count(name) != 1:
            raise UserError(
                f"{option}={name}: {shown} has {schema.names.count(name)} such columns; it has "
                f"{', '.join(schema.names)}"
            )
    key_type = kept_type(schema.field(key).type)
    if key_type is None or not (pa.types.is_string(key_type) or pa.types.is_integer(key_type)):
        raise UserError(
            f"join.key={key}: is {schema.field(key).type}; expected text, as the keys of rows are"
        )
    for name in wanted:
        if name in taken:
            raise UserError(
                f"join.columns={name}: the rows have a column of this name; rename that of {shown}, or name others in "
                "join.columns"
            )
        if not is_column_name(name):
            raise UserError(
                f"join.columns={name}: expected letters, digits and _, and none of {', '.join(KEYWORDS)}, so that "
                "conditions can name it"
            )
        if kept_type(schema.field(name).type) is None:
            raise UserError(
                f"join.columns={name}: is {schema.field(name).type}, which is not kept; expected {KEPT_TYPES}"
            )
    if not wanted:
        raise UserError(f"join.table={shown}: has no column but {key}; expected some to be joined")


class JoinCheck:
    """What of a dataset a table has values for. Token shards are added in any order."""

    def __init__(self, table: JoinTable) -> None:
        self.num_keys = self.num_missing = 0
        self.first_missing = ""
        self._table = table
        self._shards = np.full(len(table.columns), _NO_ROW, np.int64)  # number of the one that used the row
        self._names: list[str] = []
        self.shared: tuple[str, str, str] | None = None  # a key, and two token shards that it is in

    def add(self, shard: str, keys: Sequence[str]) -> None:
        places = self._table.find(shard, keys)
        self.num_keys += len(keys)
        missing = np.flatnonzero(places == _NO_ROW)
        if len(missing) and not self.num_missing:
            self.first_missing = f"{keys[missing[0]]!r} of {shard}"
        self.num_missing += len(missing)
        found = np.unique(places[places != _NO_ROW])
        earlier = self._shards[found]
        if self.shared is None and (twice := np.flatnonzero(earlier != _NO_ROW)).size:
            place = found[twice[0]]
            key = keys[int(np.flatnonzero(places == place)[0])]
            self.shared = (key, self._names[earlier[twice[0]]], shard)
        self._shards[found] = len(self._names)
        self._names.append(shard)

    @property
    def num_unused(self) -> int:
        """Rows of the table that are no row's of the dataset."""
        return int((self._shards == _NO_ROW).sum())


def read_keys(url: str, shard: str) -> list[str]:
    """The keys of a token shard, each once, in order. Raises UserError where it cannot be read."""
    with damage_told(data_url(url, shard)), open_shard(data_url(url, shard)) as file:
        table = file.read(range(file.num_row_groups), [KEY])
    return list(dict.fromkeys(table[KEY].to_pylist()))


def differing_columns(
    url: str, joined: Joined, shard: str, keys: Sequence[str], table: JoinTable
) -> list[str]:
    """Of the columns that are joined already, those of which the table has another value for one of the keys."""
    names = [name for name in table.columns.column_names if name in joined.types]
    places = table.find(shard, keys)
    if not names or shard not in joined.tables:
        return []
    new = _take(table.columns.select(names), places)
    old = read_columns(url, joined, shard, pa.array(keys, pa.string()), names)
    return [name for name in names if not _equal(new[name], old[name])]


def write_side_table(
    url: str,
    joined: Joined,
    shard: str,
    keys: Sequence[str],
    table: JoinTable,
    types: Mapping[str, pa.DataType],
) -> str:
    """Publish the file of a token shard with what was joined before and the columns of `table`, of all `types`; its
    mark. What is there already is left."""
    places, others = (
        table.find(shard, keys),
        [name for name in types if name not in table.columns.column_names],
    )
    new = _take(table.columns, places)
    array = pa.array(keys, pa.string())
    old = read_columns(url, joined, shard, array, others) if others else None
    columns = {name: new[name] if old is None or name not in others else old[name] for name in sorted(types)}
    return _publish(url, shard, pa.table({KEY: array, **columns}))


def prune_side_table(url: str, joined: Joined, shard: str, removed: Removed) -> str:
    """Publish the file of a token shard without the keys that were removed; its mark. Where none of them was, that is
    as it is, and only its keys are read."""
    gone = removed.find(shard, _read_joined_table(url, joined, shard, [])[KEY].to_pylist())
    if not gone.any():
        return joined.tables[shard]
    return _publish(url, shard, _read_joined_table(url, joined, shard).filter(pa.array(~gone)))


def _read_joined_table(
    url: str, joined: Joined, shard: str, columns: Sequence[str] | None = None
) -> pa.Table:
    table = read_table(url, joined, shard, columns)
    assert table is not None, shard
    return table


def _publish(url: str, shard: str, table: pa.Table) -> str:
    content = to_file(table)
    if to_file(pq.read_table(pa.BufferReader(content))) != content:
        raise OSError(f"{shard}: the columns that were written are not those that were given")
    mark = mark_of(content)
    storage.publish_bytes(content, storage.join(url, columns_file(shard, mark)), exclusive=True)
    return mark


def _take(columns: pa.Table, places: np.ndarray) -> pa.Table:
    return columns.take(pa.array(places, mask=places == _NO_ROW))


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    """As files, in which what is not a number is equal to itself."""
    return left.type == right.type and to_file(pa.table([left], names=[""])) == to_file(
        pa.table([right], names=[""])
    )
