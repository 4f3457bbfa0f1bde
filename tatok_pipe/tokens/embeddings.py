"""Vectors to generate from: a Parquet file with a column `embedding`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.parquet_groups import open_parquet, parquet_errors, read_groups


def read_vectors(url: str, *, size: int) -> np.ndarray:
    """All rows, (n, size) float32. Raises UserError, in one line, where they are not there or not such vectors."""
    shown = storage.redact(url)
    advice = f"expected a Parquet file with a column embedding, lists of {size} numbers"
    with parquet_errors(url, advice), open_parquet(url) as (file, source):
        if "embedding" not in file.schema_arrow.names:
            raise UserError(f"{shown}: has columns {file.schema_arrow.names}; {advice}")
        column = read_groups(file, source, list(range(file.num_row_groups)), ["embedding"])["embedding"]
    vectors = column.to_pylist() if _holds_numbers(column.type) else []
    if not vectors or any(vector is None or len(vector) != size for vector in vectors):
        raise UserError(f"{shown}: {len(column)} rows of {column.type}; {advice}")
    with np.errstate(over="ignore"):  # what is too large is not finite, and said below
        values = np.array(vectors, np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{shown}: has numbers that are not finite; {advice}")
    return values


def _holds_numbers(column_type: pa.DataType) -> bool:
    """Whether it is one of the lists that pyarrow, pandas and polars write, of numbers."""
    is_list = (
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
    )
    if not is_list:
        return False
    return pa.types.is_floating(column_type.value_type) or pa.types.is_integer(column_type.value_type)
