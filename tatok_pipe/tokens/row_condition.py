"""A condition on the rows of a token dataset, by its own columns and by those that were joined to it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa

from tatok_pipe.errors import UserError
from tatok_pipe.tokens.editing.where import parse_where
from tatok_pipe.tokens.joined import KEY, read_columns, read_joined
from tatok_pipe.tokens.spec import TokenSpec, token_schema


class RowCondition:
    """What `text` says of the rows of the dataset at `url`. Its methods may be called by several threads at once.

    Raises ValueError, one line, for a text that is no condition on columns that are there; BrokenColumns.
    """

    def __init__(self, url: str, spec: TokenSpec, text: str) -> None:
        self.text = text
        self._url = url
        self._joined = read_joined(url)
        own = token_schema(spec)
        self._where = parse_where(text, pa.schema([*own, *self._joined.schema]))
        self._from_joined = [name for name in self._where.columns if name in self._joined.types]
        needed = [KEY] * bool(self._from_joined) + [name for name in self._where.columns if name in own.names]
        self.columns = tuple(dict.fromkeys(needed))  # of a token shard, that `rows` looks at

    @cached_property
    def joined_digest(self) -> str:
        """`Joined.digest`, where it looks at joined columns; else empty."""
        return self._joined.digest if self._from_joined else ""

    def rows(self, shard: str, table: pa.Table) -> np.ndarray:
        """The numbers of the rows of `table`, rows of the token shard with `columns`, that it is true of, ascending.
        Raises BrokenColumns."""
        if self._from_joined:
            keys = table[KEY].combine_chunks()
            beside = read_columns(self._url, self._joined, shard, keys, self._from_joined)
            for name in self._from_joined:
                table = table.append_column(name, beside[name])
        return self._where.rows(table)

    def holds(self, shard: str, table: pa.Table) -> np.ndarray:
        """(len(table),) bool: whether it is true of each row. Raises as `rows`."""
        chosen = np.zeros(len(table), np.bool_)
        chosen[self.rows(shard, table)] = True
        return chosen


def read_condition(url: str, spec: TokenSpec, text: str, *, option: str = "where") -> RowCondition | None:
    """What `text`, which the user calls `option`, says of the rows of a dataset; None where it is empty. Raises
    UserError, one line, where it is no condition."""
    try:
        return RowCondition(url, spec, text) if text else None
    except ValueError as error:
        raise UserError(f"{option}={text}: {error}") from None
