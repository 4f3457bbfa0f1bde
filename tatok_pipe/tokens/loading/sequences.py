"""The sequences of a token dataset from its shards, row group by row group, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.columns import list_lengths
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.batches import Sequences
from tatok_pipe.tokens.loading.conditions import (
    ConditionConfig,
    check_labels,
    read_embeddings,
    read_joined_embeddings,
)
from tatok_pipe.tokens.loading.parquet_groups import parquet_errors
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.windows import RowGroup, is_held_out
from tatok_pipe.tokens.row_condition import RowCondition
from tatok_pipe.tokens.shard_file import open_shard
from tatok_pipe.tokens.spec import TokenSpec

_ADVICE = (
    "`python -m tatok_pipe.inspect_tokens --verify` tells what is wrong with the dataset; after a repair begin again, "
    "or go on with on_dataset_change=restart_epoch"
)


class SequenceReader:
    """Reads the sequences of one split, of the rows that `chosen` is true of. Its methods may be called by several
    threads at once."""

    def __init__(
        self,
        source: Source,
        spec: TokenSpec,
        condition: ConditionConfig,
        *,
        held_out_share: float,
        is_held_out: bool,
        chosen: RowCondition | None = None,
    ) -> None:
        self._url = source.url
        self._labels = np.array(source.labels, np.int32)  # of its classes; none: as they are
        self._spec = spec
        self._condition = replace(condition, embeddings_url=source.embeddings_url or condition.embeddings_url)
        self._held_out_share = held_out_share
        self._is_held_out = is_held_out
        self._columns = ["global_codes", "patch_codes", "patch_positions"]
        if condition.kind == "class":
            self._columns.append("label")
        if held_out_share or condition.kind == "embedding":
            self._columns.append("key")
        self._chosen = chosen
        if chosen is not None:
            self._columns += [name for name in chosen.columns if name not in self._columns]

    @property
    def where(self) -> str:
        """The condition on its rows; empty where there is none."""
        return self._chosen.text if self._chosen is not None else ""

    @property
    def is_local(self) -> bool:
        """Whether its files are on a disk of this machine."""
        return storage.is_local(storage.open_filesystem(self._url)[0])

    def read(self, group: RowGroup) -> Sequences:
        """The sequences of a row group that are in the split, in order; all have a condition that is not hidden.

        Raises UserError, in one line that names the shard, where it cannot be read, is not as it was listed, or has no
        usable condition.
        """
        url = data_url(self._url, group.shard)
        with parquet_errors(url, _ADVICE), open_shard(url) as file:
            found = file.metadata.num_rows
            if found != group.shard_rows:
                raise UserError(
                    f"{storage.redact(url)}: has {found} rows, it had {group.shard_rows} when the dataset was listed; "
                    f"{_ADVICE}"
                )
            found = file.metadata.row_group(group.number).num_rows
            if found != group.num_rows:
                raise UserError(
                    f"{storage.redact(url)}: row group {group.number} has {found} rows, expected {group.num_rows}; "
                    f"{_ADVICE}"
                )
            table = file.read([group.number], self._columns)
        rows = group.first_row + np.arange(group.num_rows)
        if self._chosen is not None:
            chosen = self._chosen.holds(group.shard, table)
            table, rows = table.filter(pa.array(chosen)), rows[chosen]
        if self._held_out_share:
            keys = table["key"].cast(pa.binary()).to_pylist()
            chosen = is_held_out(keys, self._held_out_share) == self._is_held_out
            table, rows = table.filter(pa.array(chosen)), rows[chosen]
        return self._to_sequences(table.combine_chunks(), rows, group)

    def _to_sequences(self, table: pa.Table, rows: np.ndarray, group: RowGroup) -> Sequences:
        num_patches = list_lengths(_one(table, "patch_codes")).astype(np.int64)
        labels, embeddings = np.zeros(len(rows), np.int32), None
        if self._condition.kind == "class":
            labels = self._read_labels(table, rows, group)
        elif self._condition.kind == "embedding":
            keys = _one(table, "key")
            embeddings = (
                read_joined_embeddings(self._condition, self._url, group.shard, keys)
                if self._condition.embeddings_column
                else read_embeddings(self._condition, group.shard, keys)
            )
        return Sequences(
            numbers=group.shard_begin + rows,
            global_codes=_values(table, "global_codes").reshape(len(rows), self._spec.num_globals),
            num_patches=num_patches,
            patch_codes=_values(table, "patch_codes"),
            patch_positions=_values(table, "patch_positions"),
            labels=labels,
            is_conditional=np.full(len(rows), self._condition.kind != "none"),
            has_budget=np.ones(len(rows), np.bool_),
            embeddings=embeddings,
        )

    def _read_labels(self, table: pa.Table, rows: np.ndarray, group: RowGroup) -> np.ndarray:
        shown = storage.redact(data_url(self._url, group.shard))

        def name(place: int) -> str:
            if "key" in table.column_names:
                return f"key {table['key'][place].as_py()!r}"
            return f"row {int(rows[place])}"

        num_classes = len(self._labels) or self._condition.num_classes
        labels = check_labels(_one(table, "label"), num_classes=num_classes, shard=shown, name=name)
        return self._labels[labels] if len(self._labels) else labels


def concatenate(parts: Sequence[Sequences]) -> Sequences:
    """At least one part, one after the other."""
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Sequences(
        numbers=np.concatenate([part.numbers for part in parts]),
        global_codes=np.concatenate([part.global_codes for part in parts]),
        num_patches=np.concatenate([part.num_patches for part in parts]),
        patch_codes=np.concatenate([part.patch_codes for part in parts]),
        patch_positions=np.concatenate([part.patch_positions for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        is_conditional=np.concatenate([part.is_conditional for part in parts]),
        has_budget=np.concatenate([part.has_budget for part in parts]),
        embeddings=np.concatenate(embeddings) if embeddings else None,
    )


def _one(table: pa.Table, column: str) -> pa.Array:
    chunks = table[column].chunks
    return chunks[0] if chunks else pa.array([], table[column].type)


def _values(table: pa.Table, column: str) -> np.ndarray:
    """What the lists of a column hold, end to end."""
    return _one(table, column).flatten().to_numpy(zero_copy_only=False)
