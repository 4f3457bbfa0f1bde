"""What a training will see of a token dataset: which side of the split has images, and which classes have one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.conditions import check_labels
from tatok_pipe.tokens.loading.parquet_groups import parquet_errors
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.windows import ShardRows, is_held_out
from tatok_pipe.tokens.row_condition import RowCondition
from tatok_pipe.tokens.shard_file import open_shard

_NUM_THREADS = 8
_ADVICE = "`python -m tatok_pipe.inspect_tokens --verify` tells what is wrong with the dataset"


@dataclass(frozen=True)
class Split:
    """Of the images that are trained on, and of those that are held out."""

    has_train: bool
    has_held_out: bool
    classes: frozenset[int]  # that an image to be trained on has; empty where nobody asked


def join_splits(splits: Sequence[Split]) -> Split:
    """Of all that is trained on together."""
    return Split(
        has_train=any(each.has_train for each in splits),
        has_held_out=any(each.has_held_out for each in splits),
        classes=frozenset().union(*(each.classes for each in splits)),
    )


def survey_split(
    source: Source, *, held_out_share: float, num_classes: int = 0, chosen: RowCondition | None = None
) -> Split:
    """Look at keys and, for `num_classes` (0: none), at labels, and no further than it takes to know: both sides have
    an image, and every class. Only rows that the condition `chosen` is true of count.

    Raises UserError where a shard cannot be read, and for a label that is missing or out of range in what was looked
    at: with too few classes, or a corpus without labels, that is the first shard.
    """
    if not held_out_share and not num_classes:
        return Split(has_train=True, has_held_out=False, classes=frozenset())
    own = np.array(source.labels, np.int32)
    expected = own if len(own) else np.arange(num_classes)  # classes that may be found
    columns = ["key"] * bool(held_out_share) + ["label"] * bool(num_classes)
    columns += [name for name in (chosen.columns if chosen else ()) if name not in columns]
    has_train, has_held_out, seen = False, False, np.zeros(num_classes, np.bool_)

    def read(shard: ShardRows) -> tuple[bool, bool, np.ndarray]:
        place = data_url(source.url, shard.name)
        with parquet_errors(place, _ADVICE), open_shard(place) as file:
            table = file.read(range(file.num_row_groups), columns)
        if chosen is not None:
            table = table.filter(pa.array(chosen.holds(shard.name, table)))
        held_out = np.zeros(len(table), np.bool_)
        if held_out_share:
            held_out = is_held_out(table["key"].cast(pa.binary()).to_pylist(), held_out_share)
        labels = np.zeros(0, np.int32)
        if num_classes:
            given = table["label"].combine_chunks()
            checked = check_labels(
                given, num_classes=len(source.labels) or num_classes, shard=storage.redact(place),
                name=lambda row: f"row {row}",
            )  # fmt: skip
            labels = np.unique(own[checked[~held_out]] if len(own) else checked[~held_out])
        return bool((~held_out).any()), bool(held_out.any()), labels

    filled = [shard for shard in source.shards if shard.num_rows]
    with ThreadPoolExecutor(_NUM_THREADS, "token-split") as pool:
        for trains, holds_out, labels in map_ahead(pool, read, filled, max_items=_NUM_THREADS):
            has_train, has_held_out = has_train or trains, has_held_out or holds_out
            seen[labels] = True
            if has_train and (has_held_out or not held_out_share) and seen[expected].all():
                break
    return Split(has_train, has_held_out, frozenset(np.flatnonzero(seen).tolist()))
