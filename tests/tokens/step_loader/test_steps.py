"""What a step holds, whatever the number of ranks."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.records import Kind
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.layout import DATASET_FILE
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.step_loader.steps import (
    CLASSES,
    CONFIG,
    COUNTS,
    NOTHING,
    MakeRecords,
    all_of,
    epoch_of,
    expected_of,
    loader_threads,
    open_loader,
    rows_of,
    wait_for_no_threads,
    write_shard,
)


def test_an_epoch_has_every_sequence_once(url: str) -> None:
    steps = epoch_of(open_loader(url))
    assert sorted(all_of(steps), key=lambda found: found.number) == expected_of(url)
    steps = epoch_of(open_loader(url, condition=NOTHING))
    assert sorted(all_of(steps), key=lambda found: found.number) == expected_of(url, with_labels=False)


def test_figures_of_a_step(url: str, token_spec: TokenSpec) -> None:
    for num_ranks in (1, 3):
        ranks = [epoch_of(open_loader(url, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
        num_slots = num_ranks * 2 * (2 if num_ranks == 1 else 1) * 40
        for step, *others in zip(*ranks, strict=True):
            found = [sequence for each in (step, *others) for sequence in all_of([each])]
            assert step.num_sequences == len(found)
            assert step.num_codes == sum(len(each.global_codes) + len(each.patch_codes) for each in found)
            assert step.num_positions == sum(len(each.patch_codes) + 1 for each in found)
            assert step.num_elements == step.num_codes + len(found)
            assert step.num_slots == num_slots
            assert step.fill == step.num_elements / num_slots
            for other in others:
                assert dataclasses.replace(other, microbatches=()) == dataclasses.replace(
                    step, microbatches=()
                )
            shapes = {
                (batch.num_rows, batch.num_elements)
                for each in (step, *others)
                for batch in each.microbatches
            }
            assert shapes == {(2, 80)}
        assert [step.step_in_epoch for step in ranks[0]] == list(range(len(ranks[0])))


def test_only_the_last_step_of_an_epoch_has_empty_rows(url: str) -> None:
    steps = epoch_of(open_loader(url))
    assert len(steps) > 8
    for step in steps[:-1]:
        rows = np.concatenate([batch.kinds.reshape(-1, 40) for batch in step.microbatches])
        assert (rows[:, 0] == Kind.CONDITION).all()
    assert sum(step.fill for step in steps[:-1]) / len(steps[:-1]) > 0.9


def test_all_world_sizes_have_the_same_steps(url: str) -> None:
    condition = dataclasses.replace(CLASSES, drop_condition=0.3)
    expected = epoch_of(open_loader(url, condition=condition))
    for num_ranks in (2, 3, 7):  # more ranks than rows a step, too
        ranks = [
            epoch_of(open_loader(url, condition=condition, rank=rank, num_ranks=num_ranks))
            for rank in range(num_ranks)
        ]
        for whole, *parts in zip(expected, *ranks, strict=True):
            rows = [rows_of(part) for part in parts]
            # Row j of the step is row j // W of rank j % W.
            joined = [row for group in itertools.zip_longest(*rows, fillvalue=[]) for row in group]
            assert [row for row in joined if row] == [row for row in rows_of(whole) if row]


def test_epochs_and_seeds_have_orders_of_their_own(url: str) -> None:
    def numbers(seed: int, epoch: int) -> list[int]:
        return [found.number for found in all_of(epoch_of(open_loader(url, seed=seed), epoch))]

    orders = {(seed, epoch): numbers(seed, epoch) for seed in (3, 4) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(sorted(order) == list(range(sum(COUNTS))) for order in orders.values())
    assert numbers(3, 1) == orders[3, 1]


def test_hidden_conditions(url: str) -> None:
    condition = dataclasses.replace(CLASSES, drop_condition=0.25)
    first, again = (all_of(epoch_of(open_loader(url, condition=condition))) for _ in range(2))
    assert first == again
    every = expected_of(url)
    shown = [dataclasses.replace(found, is_conditional=True, has_budget=True) for found in first]
    assert all(found == every[found.number] for found in shown)
    later = [all_of(epoch_of(open_loader(url, condition=condition), epoch)) for epoch in range(4)]
    hidden = [{found.number for found in epoch if not found.is_conditional} for epoch in later]
    assert hidden[0] != hidden[1]
    assert sum(map(len, hidden)) / (4 * sum(COUNTS)) == pytest.approx(0.25, abs=0.07)
    other = all_of(epoch_of(open_loader(url, dataclasses.replace(CONFIG, row_tokens=64), condition)))
    assert {found.number for found in other if not found.is_conditional} == hidden[0]
    # Budgets are hidden as often, and not together with conditions.
    unbudgeted = [{found.number for found in epoch if not found.has_budget} for epoch in later]
    assert sum(map(len, unbudgeted)) / (4 * sum(COUNTS)) == pytest.approx(0.25, abs=0.07)
    both = sum(len(a & b) for a, b in zip(hidden, unbudgeted, strict=True))
    assert both / (4 * sum(COUNTS)) == pytest.approx(0.25**2, abs=0.04)


def test_rows_without_globals(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    spec = dataclasses.replace(token_spec, num_globals=0)
    records = make_token_records(spec, 30)
    create_or_check(str(tmp_path), spec, {})
    (tmp_path / "data").mkdir()
    write_shard(tmp_path, "s0", spec, records)
    dataset = read_training_set(str(tmp_path))
    loader = StepLoader(
        [Source(str(tmp_path), dataset.shards)], dataset.spec, CONFIG, condition=NOTHING, seed=0
    )
    seen = 0
    for step in loader:
        for batch in step.microbatches:
            assert not (batch.kinds == Kind.GLOBAL).any()
            starts = batch.boundaries[np.flatnonzero(batch.kinds[batch.boundaries[:-1]] == Kind.CONDITION)]
            for start, number in zip(starts, batch.sequences, strict=True):
                record = records[number]
                span = slice(start + 1, start + 1 + record.num_tokens)
                np.testing.assert_array_equal(batch.codes[span], record.patch_codes)
                np.testing.assert_array_equal(batch.places[span], record.patch_positions)
                seen += 1
        if step.is_epoch_end:
            break
    assert seen == len(records)


def test_threads_end(url: str) -> None:
    wait_for_no_threads()
    steps = iter(open_loader(url))
    assert not loader_threads()  # none before they are needed
    next(steps)
    assert loader_threads()
    del steps
    gc.collect()
    wait_for_no_threads()
    config = dataclasses.replace(CONFIG, held_out_share=0.2)
    assert list(open_loader(url, config, split="held_out"))
    wait_for_no_threads()
    loader = open_loader(url)
    Path(url, "data/s4.parquet").unlink()
    with pytest.raises(UserError):
        epoch_of(loader)
    wait_for_no_threads()


def test_only_one_window_is_read_ahead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    loader = open_loader(url)
    original = loader._stream._pack

    def pack(sequences: Any, begin: Any, place: int, *, end: Any) -> Any:
        read.append(begin.window)
        return original(sequences, begin, place, end=end)

    monkeypatch.setattr(loader._stream, "_pack", pack)
    steps = iter(loader)
    next(steps)
    time.sleep(0.3)
    assert read == [0, 1]


@pytest.mark.s3
def test_s3(url: str, s3_url: str) -> None:
    for name in (DATASET_FILE, *(f"data/s{shard}.parquet" for shard in range(len(COUNTS)))):
        storage.publish_file(Path(url, name), storage.join(s3_url, name), exclusive=True)
    assert all_of(epoch_of(open_loader(s3_url))) == all_of(epoch_of(open_loader(url)))
    loader = open_loader(s3_url)
    storage.remove(storage.join(s3_url, "data/s4.parquet"))
    with pytest.raises(UserError, match=r"data/s4\.parquet.*; .*--verify"):
        epoch_of(loader)
    wait_for_no_threads()
