"""A digest of what rows say, however they are stored: the same from records and from the table read back.

The two ways share no conversion, so that an error of one, be it of ours, of Arrow's or of the memory between
them, gives another digest. Every column is a stream of values of fixed width, with a stream of lengths where
values have any and one of presence where they may be missing; how rows were batched leaves no trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.columns import list_lengths
from tatok_pipe.tokens.statistics import float32_toward_zero

_STRINGS = ("key", "caption", "meta")
# The width of each number in the digest; codes have the same whether the column is uint16 or uint32.
_NUMBERS = {
    "label": "<i4",
    "width": "<i4",
    "height": "<i4",
    "crop": "<i2",
    "num_tokens": "<i4",
    "entropy_total": "<f4",
    "entropy_dropped": "<f4",
    "mutual_information": "<f4",
}
_LISTS = {"global_codes": "<u4", "patch_codes": "<u4", "patch_positions": "<u2", "patch_entropy": "<f4"}
_COLUMNS = (*_STRINGS, *_NUMBERS, *_LISTS)
_SCORES = {"patch_score": "<f2"}  # not in every dataset
_MISSING = -1  # the length of what is null


class ContentDigest:
    """SHA-256 over rows in their order. Feed it with either method, in any batches."""

    def __init__(self) -> None:
        self._streams = {
            (name, part): hashlib.sha256() for name in _COLUMNS for part in ("lengths", "values")
        }

    def update(self, records: Sequence[TokenRecord]) -> None:
        """Add rows as they are in memory. Raises ValueError or OverflowError where a value does not fit."""
        for name in _STRINGS:
            texts = [getattr(record, name) for record in records]
            encoded = [None if text is None else text.encode("utf-8") for text in texts]
            lengths = [_MISSING if text is None else len(text) for text in encoded]
            self._add(name, np.array(lengths, "<i4"), b"".join(text for text in encoded if text is not None))
        for name, width in _NUMBERS.items():
            numbers = [getattr(record, name) for record in records]
            present = [number for number in numbers if number is not None]
            exact = float32_toward_zero(present) if name == "entropy_dropped" else np.array(present, width)
            self._add(name, np.array([number is not None for number in numbers], "<i4"), exact.tobytes())
        has_scores = bool(records) and records[0].patch_score is not None
        for name, width in (_LISTS | _SCORES if has_scores else _LISTS).items():
            rows = [getattr(record, name) for record in records]
            lengths = [_MISSING if row is None else len(row) for row in rows]
            values = b"".join(np.asarray(row).astype(width).tobytes() for row in rows if row is not None)
            self._add(name, np.array(lengths, "<i4"), values)

    def update_from_table(self, table: pa.Table) -> None:
        """Add rows as they were read, in the columns of `token_schema`."""
        for batch in table.to_batches():
            for name in _STRINGS:
                column = batch.column(name).cast(pa.binary())
                lengths = pc.call_function("binary_length", [column]).fill_null(_MISSING)
                self._add(name, lengths.to_numpy().astype("<i4"), _joined(column))
            for name, width in _NUMBERS.items():
                column = batch.column(name)
                present = column.is_valid().to_numpy(zero_copy_only=False).astype("<i4")
                self._add(name, present, column.drop_null().to_numpy().astype(width).tobytes())
            has_scores = bool(batch.num_rows) and "patch_score" in batch.schema.names
            for name, width in (_LISTS | _SCORES if has_scores else _LISTS).items():
                column = batch.column(name)
                lengths = list_lengths(column, missing=_MISSING).astype("<i4")
                self._add(name, lengths, column.flatten().to_numpy().astype(width).tobytes())

    def hexdigest(self) -> str:
        """64 hex digits for all rows so far."""
        whole = hashlib.sha256()
        for (name, part), stream in self._streams.items():
            whole.update(f"{name}.{part}:{stream.hexdigest()};".encode())
        return whole.hexdigest()

    def _add(self, name: str, lengths: np.ndarray, values: Any) -> None:
        for part, data in (("lengths", lengths.tobytes()), ("values", values)):
            self._streams.setdefault((name, part), hashlib.sha256()).update(data)


def _joined(column: pa.Array) -> Any:
    """The bytes of a binary column without those under nulls, one after the other."""
    values = column.drop_null()
    if not len(values):
        return b""
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return b"" if data is None else data.slice(int(bounds[0]), int(bounds[-1] - bounds[0]))
