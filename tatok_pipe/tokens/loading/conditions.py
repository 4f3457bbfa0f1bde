"""What a generator is told about each image: nothing, its class, or an embedding computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.columns import to_numpy
from tatok_pipe.tokens.joined import read_columns, read_joined
from tatok_pipe.tokens.layout import SUFFIX
from tatok_pipe.tokens.loading.embeddings import COLUMN, to_lists, to_vectors
from tatok_pipe.tokens.loading.parquet_groups import open_parquet, parquet_errors, read_groups

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers
_KINDS = ("none", "class", "embedding")


@dataclass(frozen=True)
class ConditionConfig:
    kind: str = "none"  # what the generator is told about an image
    num_classes: int = 0  # for kind "class": labels are 0 to num_classes - 1
    # For kind "embedding": folder of <token shard name>.parquet with the columns key and embedding (lists of numbers,
    # or tensors), and how long these are.
    embeddings_url: str = ""
    embeddings_column: str = ""  # or the column that was joined to the dataset and has them
    embedding_size: int = 0
    # Share of sequences whose condition is hidden in training, which classifier-free guidance needs; and of those whose
    # budget is.
    drop_condition: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(_KINDS)}")
        if self.kind == "class" and self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}: expected at least 1 with kind=class")
        if self.kind == "embedding" and not (self.embeddings_url or self.embeddings_column):
            raise ValueError(
                "embeddings_url is empty: expected a folder, or embeddings_column, with kind=embedding"
            )
        if self.embeddings_url and self.embeddings_column:
            raise ValueError(
                f"embeddings_column={self.embeddings_column}: expected none with embeddings_url; give one of them"
            )
        if self.kind == "embedding" and self.embedding_size < 1:
            raise ValueError(f"embedding_size={self.embedding_size}: expected at least 1 with kind=embedding")
        if not 0 <= self.drop_condition <= 1:
            raise ValueError(f"drop_condition={self.drop_condition}: expected 0 to 1")


def check_labels(labels: pa.Array, *, num_classes: int, shard: str, name: Callable[[int], str]) -> np.ndarray:
    """Labels as (n,) int32. Raises UserError for one that is missing or out of range; `name` names its row."""
    filled = to_numpy(labels.fill_null(-1)).astype(np.int32)
    is_bad = (filled < 0) | (filled >= num_classes)
    if is_bad.any():
        place = int(is_bad.argmax())
        raise UserError(
            f"{shard}: {name(place)} has label {labels[place].as_py()}, expected 0 to {num_classes - 1}; set "
            "num_classes to one more than the largest label, or condition kind none, or tokenize a corpus that "
            "has labels"
        )
    return filled


def read_embeddings(config: ConditionConfig, shard: str, keys: pa.Array) -> np.ndarray:
    """The embeddings of the samples with `keys` of a token shard, (n, E) float32; a key may come repeatedly.

    Of the file only the keys are read, and those row groups that are needed. Raises UserError where the file, a key or
    a number in an embedding is missing, or where an embedding is not `embedding_size` long or has numbers that are not
    finite.
    """
    url = storage.join(config.embeddings_url, shard + SUFFIX)
    shown, size = storage.redact(url), config.embedding_size
    missing = "compute the embeddings of this shard again, or give the folder that has them as embeddings_url"
    with parquet_errors(url, missing), open_parquet(url) as (file, source):
        names = file.schema_arrow.names
        if not {"key", COLUMN} <= set(names):
            raise UserError(f"{shown}: has columns {names}, expected key and embedding; {missing}")
        num_groups = file.num_row_groups
        known = read_groups(file, source, list(range(num_groups)), ["key"])["key"]
        rows = pc.index_in(keys, value_set=known.cast(keys.type).combine_chunks())
        if rows.null_count:
            key = keys[pc.is_null(rows).to_pylist().index(True)].as_py()
            raise UserError(
                f"{shown}: no embedding with key {key!r} among {file.metadata.num_rows}; {missing}"
            )
        starts = np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(num_groups)])
        wanted = to_numpy(rows).astype(np.int64)
        group_of = np.searchsorted(starts, wanted, "right") - 1
        groups = np.unique(group_of)
        table = read_groups(file, source, groups.tolist(), [COLUMN])
    sizes = starts[groups + 1] - starts[groups]
    begins = np.zeros(num_groups, np.int64)
    begins[groups] = np.cumsum(sizes) - sizes
    try:
        lists = to_lists(table, size=size).take(pa.array(begins[group_of] + wanted - starts[group_of]))
        return to_vectors(lists, size=size, name=lambda row: repr(keys[row].as_py()))
    except ValueError as error:
        raise UserError(f"{shown}: {error}; {missing}") from None


def read_joined_embeddings(config: ConditionConfig, url: str, shard: str, keys: pa.Array) -> np.ndarray:
    """The same from a column that was joined to the dataset at `url`. Raises as `read_embeddings`."""
    column, joined = config.embeddings_column, read_joined(url)
    told = f"embeddings_column={column}: {storage.redact(url)}"
    if not pa.types.is_list(joined.types.get(column, pa.null())):
        raise UserError(
            f"{told} has no such joined column of lists; it has {', '.join(joined.schema.names) or 'none'}"
        )
    lists = read_columns(url, joined, shard, keys, [column])[column].combine_chunks()
    try:
        return to_vectors(lists, size=config.embedding_size, name=lambda row: repr(keys[row].as_py()))
    except ValueError as error:
        raise UserError(f"{told}, {shard}: {error}") from None
