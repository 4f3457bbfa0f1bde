"""Arrow columns as NumPy arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def to_numpy(column: pa.Array) -> np.ndarray:
    """A column of numbers without nulls, (n,), in its own type; a read-only view of its memory."""
    return column.to_numpy(zero_copy_only=True)


def list_lengths(column: pa.Array, *, missing: int = 0) -> np.ndarray:
    """The lengths of the lists of a column, (n,) int32, and `missing` where there is none."""
    return pc.call_function("list_value_length", [column]).fill_null(missing).to_numpy()
