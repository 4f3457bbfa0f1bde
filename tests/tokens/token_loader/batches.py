"""Small token datasets, and the sequences of their batches read from ids alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import TokenBatch, TokenLoader
from tatok_pipe.records import Kind, TokenRecord
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.spec import TokenSpec

COUNTS = (50, 37, 0, 16, 70)  # rows of the shards
OTHER_COUNTS = (21, 20)  # of another dataset
NUM_CLASSES = 10
PADDED: dict[str, Any] = {"rows_per_step": 6, "window_sequences": 60, "seed": 3, "layout": "padded"}
SETTINGS: dict[str, Any] = {**PADDED, "layout": "packed", "row_tokens": 40}
LAYOUTS = pytest.mark.parametrize("settings", [SETTINGS, PADDED], ids=["packed", "padded"])
MakeRecords = Callable[..., list[TokenRecord]]


def write_dataset(
    folder: Path, spec: TokenSpec, make: MakeRecords, counts: Sequence[int] = COUNTS, *, first_seed: int = 0
) -> str:
    create_or_check(str(folder), spec, {})
    (folder / "data").mkdir()
    for shard, count in enumerate(counts):
        records = [
            dataclasses.replace(record, key=f"{shard}/{record.key}", label=place % NUM_CLASSES)
            for place, record in enumerate(make(spec, count, seed=first_seed + shard))
        ]
        source = ShardSource(f"/s{shard}.tar", 1)
        with ShardWriter(folder / f"data/s{shard}.parquet", spec, source) as writer:
            writer.append(records)
    return str(folder)


def spelled(batch: TokenBatch, loader: TokenLoader) -> list[tuple[int, int, tuple[int, ...], dict[int, int]]]:
    """(number, label or -1, globals, patches by position) of each sequence, row by row, read from ids alone."""
    spec, found = loader.spec, []
    for ids, positions, targets in zip(
        batch.ids.tolist(), batch.positions.tolist(), batch.targets.tolist(), strict=True
    ):
        place = 0
        while place < len(ids) and ids[place] != loader.end_id:
            label = ids[place] - spec.global_vocab - spec.patch_vocab
            stop = place + 1
            while stop < len(ids) and positions[stop]:
                stop += 1
            codes = list(zip(positions[place + 1 : stop], ids[place + 1 : stop], strict=True))
            assert targets[place:stop] == [*ids[place + 1 : stop], loader.end_id]
            found.append(
                (
                    -1 if ids[place] == loader.none_id else label,
                    tuple(code for position, code in codes if position <= spec.num_globals),
                    {
                        position - 1 - spec.num_globals: code - spec.global_vocab
                        for position, code in codes
                        if position > spec.num_globals
                    },
                )
            )
            place = stop
        assert set(targets[place:]) <= {-100} and set(positions[place:]) <= {0}
    return [(number, *each) for number, each in zip(batch.sequences.tolist(), found, strict=True)]


def numbers(batches: Iterable[TokenBatch]) -> list[list[int]]:
    return [batch.sequences.tolist() for batch in batches]


def step_of(batches: list[TokenBatch]) -> list[list[tuple[int, int]]]:
    """The sequences of a step, (dataset, number), row after row: those of the ranks take turns."""
    rows = []
    for batch in batches:
        left, mine = list(zip(batch.sources.tolist(), batch.sequences.tolist(), strict=True)), []
        for kinds in batch.kinds:
            count = int((kinds == Kind.CONDITION).sum())
            mine.append(left[:count])
            del left[:count]
        rows.append(mine)
    return [row for turn in itertools.zip_longest(*rows, fillvalue=[]) for row in turn if row]
