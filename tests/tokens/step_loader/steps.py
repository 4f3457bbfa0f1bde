"""A small token dataset's steps, and the sequences in them read element by element."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tatok_pipe.records import Kind, PackedBatch, TokenRecord
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepBatch, StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
COUNTS = (50, 37, 0, 16, 70)  # rows of the shards
NUM_CLASSES = 10
CLASSES = ConditionConfig(kind="class", num_classes=NUM_CLASSES, drop_condition=0.0)
NOTHING = ConditionConfig(drop_condition=0.0)
CONFIG = LoaderConfig(row_tokens=40, rows_per_step=4, rows_per_microbatch=2, window_sequences=60)


def make_records(make: MakeRecords, spec: TokenSpec, shard: int, count: int) -> list[TokenRecord]:
    return [
        dataclasses.replace(
            record, key=f"{shard}/{record.key}", label=int(record.global_codes[0]) % NUM_CLASSES
        )
        for record in make(spec, count, seed=shard)
    ]


def write_shard(folder: Path, name: str, spec: TokenSpec, records: Sequence[TokenRecord]) -> None:
    with ShardWriter(folder / "data" / f"{name}.parquet", spec, ShardSource(f"/{name}.tar", 1)) as writer:
        writer.append(records)


def open_loader(
    url: str,
    config: LoaderConfig = CONFIG,
    condition: ConditionConfig = CLASSES,
    seed: int = 3,
    **options: Any,
) -> StepLoader:
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    return StepLoader([Source(url, shards)], spec, config, condition=condition, seed=seed, **options)


def epoch_of(loader: StepLoader, number: int = 0) -> list[StepBatch]:
    steps = [
        step
        for step in itertools.takewhile(lambda step: step.epoch <= number, loader)
        if step.epoch == number
    ]
    assert steps[-1].is_epoch_end and not any(step.is_epoch_end for step in steps[:-1])
    return steps


@dataclasses.dataclass(frozen=True)
class Found:
    """One sequence, read element by element from a batch."""

    number: int
    global_codes: list[int]
    patch_codes: list[int]
    patch_positions: list[int]
    label: int
    is_conditional: bool
    has_budget: bool
    embedding: tuple[float, ...] | None


def sequences_of(batch: PackedBatch) -> list[Found]:
    found = []
    for start, stop in itertools.pairwise(batch.boundaries.tolist()):
        if batch.kinds[start] == Kind.PADDING:
            continue
        kinds, index = batch.kinds[start:stop], len(found)
        assert batch.order[start:stop].tolist() == list(range(stop - start))
        is_global, is_patch = kinds == Kind.GLOBAL, kinds == Kind.PATCH
        assert batch.places[start:stop][is_global].tolist() == list(range(is_global.sum()))
        assert kinds.tolist() == sorted(kinds.tolist()) and (kinds == Kind.CONDITION).sum() == 1
        row_tokens = batch.num_elements // batch.num_rows
        assert start // row_tokens == (stop - 1) // row_tokens
        embedding = None if batch.embeddings is None else tuple(batch.embeddings[index].tolist())
        found.append(
            Found(
                number=int(batch.sequences[index]),
                global_codes=batch.codes[start:stop][is_global].tolist(),
                patch_codes=batch.codes[start:stop][is_patch].tolist(),
                patch_positions=batch.places[start:stop][is_patch].tolist(),
                label=int(batch.labels[index]),
                is_conditional=bool(batch.is_conditional[index]),
                has_budget=bool(batch.has_budget[index]),
                embedding=embedding,
            )
        )
    assert len(found) == batch.num_sequences == len(batch.is_conditional) == len(batch.sequences)
    return found


def all_of(steps: Sequence[StepBatch]) -> list[Found]:
    return [found for step in steps for batch in step.microbatches for found in sequences_of(batch)]


def expected_of(url: str, *, with_labels: bool = True) -> list[Found]:
    return [
        Found(
            number=number,
            global_codes=record.global_codes.tolist(),
            patch_codes=record.patch_codes.tolist(),
            patch_positions=record.patch_positions.tolist(),
            label=(record.label or 0) if with_labels else 0,
            is_conditional=with_labels,
            has_budget=True,
            embedding=None,
        )
        for number, record in enumerate(TokenDataset(url).rows())
    ]


def rows_of(step: StepBatch) -> list[list[Found]]:
    """The sequences of each row of a step."""
    rows: list[list[Found]] = []
    for batch in step.microbatches:
        row_tokens = batch.num_elements // batch.num_rows
        starts = [start for start in batch.boundaries[:-1] if batch.kinds[start] == Kind.CONDITION]
        found = sequences_of(batch)
        rows += [
            [each for start, each in zip(starts, found, strict=True) if start // row_tokens == row]
            for row in range(batch.num_rows)
        ]
    return rows


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("token-")]


def wait_for_no_threads() -> None:
    until = time.monotonic() + 10
    while loader_threads() and time.monotonic() < until:
        time.sleep(0.005)
    assert not loader_threads()
