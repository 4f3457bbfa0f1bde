"""Vectors to generate from: a Parquet column `embedding`, of lists of numbers or tensors, by whatever wrote it.

Letters: n rows, E numbers a vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.columns import list_lengths
from tatok_pipe.tokens.loading.parquet_groups import open_parquet, parquet_errors, read_groups

COLUMN = "embedding"


def read_vectors(url: str, *, size: int) -> np.ndarray:
    """All rows, (n, E) float32. Raises UserError, in one line, where they are not there or not such vectors."""
    shown = storage.redact(url)
    advice = f"expected a Parquet file with a column embedding, lists of {size} numbers"
    with parquet_errors(url, advice), open_parquet(url) as (file, source):
        if COLUMN not in file.schema_arrow.names:
            raise UserError(f"{shown}: has columns {file.schema_arrow.names}; {advice}")
        table = read_groups(file, source, list(range(file.num_row_groups)), [COLUMN])
    if not len(table):
        raise UserError(f"{shown}: has no row; {advice}")
    try:
        return to_vectors(to_lists(table, size=size), size=size, name=lambda row: f"row {row}")
    except ValueError as error:
        raise UserError(f"{shown}: {error}; {advice}") from None


def to_lists(table: pa.Table, *, size: int) -> pa.Array:
    """The lists of numbers that a table's column is made of: as they are, or below what marks them as tensors of shape
    (E,), be it Arrow's or Ray's mark. Raises ValueError for any other column."""
    column, shape = table[COLUMN], _tensor_shape(table.field(COLUMN))
    kind, chunks = column.type, column.chunks
    while isinstance(kind, pa.BaseExtensionType):
        kind, chunks = kind.storage_type, [chunk.storage for chunk in chunks]
    if shape not in (None, (size,)) or not _holds_numbers(kind):
        told = column.type if shape is None else f"tensors of shape {shape}"
        raise ValueError(f"embedding is {told}, expected lists of {size} numbers, floats or integers")
    return pa.chunked_array(chunks, kind).combine_chunks()


def _tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """Of one row, where the column is marked as one of tensors. Their numbers lie flat: the mark alone tells an array
    of 2 x 3 from a vector of 6."""
    shape = getattr(field.type, "shape", None)
    # Where Ray Data is not imported, the type that its mark stands for is not known to Arrow.
    if (field.metadata or {}).get(b"ARROW:extension:name", b"").startswith(b"ray.data.arrow_tensor"):
        shape = json.loads(field.metadata[b"ARROW:extension:metadata"])
    return None if shape is None else tuple(shape)


def to_vectors(lists: pa.Array, *, size: int, name: Callable[[int], str]) -> np.ndarray:
    """(n, E) float32 of what `to_lists` gave. Raises ValueError for the first row that is null, of another length, or
    has numbers that are not finite in float32; `name` names it."""
    lengths = list_lengths(lists, missing=-1)
    if (lengths != size).any():
        row = int((lengths != size).argmax())
        what = "is null" if lengths[row] < 0 else f"has {lengths[row]} numbers"
        raise ValueError(f"the embedding of {name(row)} {what}, expected {size} numbers (embedding_dim)")
    with np.errstate(over="ignore"):  # what is too large is not finite, and said below
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        raise ValueError(f"the embedding of {name(int(is_finite.argmin()))} has numbers that are not finite")
    return values


def _holds_numbers(kind: pa.DataType) -> bool:
    """Whether it is one of the lists that pyarrow, pandas and polars write, of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
