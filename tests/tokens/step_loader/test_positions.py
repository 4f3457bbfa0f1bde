"""Going on from where another loader was."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.tokens.loading.step_loader import StepBatch, StepLoader
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.step_loader.steps import (
    CLASSES,
    CONFIG,
    COUNTS,
    Found,
    MakeRecords,
    all_of,
    epoch_of,
    make_records,
    open_loader,
    rows_of,
    write_shard,
)


def step_of_ranks(loaders: Sequence[Iterator[StepBatch]]) -> list[list[Found]]:
    rows = [rows_of(next(loader)) for loader in loaders]
    joined = [row for group in itertools.zip_longest(*rows, fillvalue=[]) for row in group]
    return [row for row in joined if row]


def test_resuming_anywhere_at_any_world_size(url: str) -> None:
    condition = dataclasses.replace(CLASSES, drop_condition=0.3)

    def begin(num_ranks: int, state: dict[str, Any] | None) -> list[StepLoader]:
        loaders = [
            open_loader(url, condition=condition, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        return loaders

    whole = iter(begin(1, None)[0])
    expected, epochs = [], []
    while not epochs or epochs[-1] < 2:  # two epochs, and a step
        step = next(whole)
        epochs.append(step.epoch)
        expected.append([row for row in rows_of(step) if row])
    num_steps = epochs.index(1)
    for first in range(1, num_steps + 2):
        found: list[list[list[Found]]] = []
        state = None
        for num_ranks, count in ((2, first), (1, 2), (2, 2)):
            loaders = begin(num_ranks, state)
            iterators = [iter(loader) for loader in loaders]
            found += [step_of_ranks(iterators) for _ in range(count)]
            states = [loader.state_dict() for loader in loaders]
            state = states[0]
            assert all(each == state for each in states)
        assert found == expected[: len(found)]


def test_resuming_with_other_steps_repeats_and_skips_nothing(url: str) -> None:
    loader = open_loader(url)
    steps = list(itertools.islice(loader, 3))
    other = open_loader(url, dataclasses.replace(CONFIG, rows_per_step=7, rows_per_microbatch=3))
    other.load_state_dict(loader.state_dict())
    found = all_of(steps) + all_of(epoch_of(other))
    assert [each.number for each in found] == [each.number for each in all_of(epoch_of(open_loader(url)))]


def test_the_state_is_that_of_the_consumed_steps(url: str) -> None:
    loader = open_loader(url)
    assert loader.state_dict() == {"epoch": 0, "window": 0, "row": 0, "digest": loader.digest}
    steps = iter(loader)
    next(steps)
    assert loader.state_dict() == {"epoch": 0, "window": 0, "row": 4, "digest": loader.digest}
    time.sleep(0.1)  # reading ahead goes on
    assert loader.state_dict()["row"] == 4
    while not next(steps).is_epoch_end:
        pass
    assert loader.state_dict() == {"epoch": 1, "window": 0, "row": 0, "digest": loader.digest}


def test_a_position_moved_under_an_iterator(url: str) -> None:
    loader = open_loader(url)
    steps = iter(loader)
    next(steps)
    state = loader.state_dict()
    loader.load_state_dict(state)
    with pytest.raises(RuntimeError, match="another position or iterated anew"):
        next(steps)
    assert loader.state_dict() == state


def test_a_position_in_another_stream(
    url: str, token_spec: TokenSpec, make_token_records: MakeRecords, caplog: pytest.LogCaptureFixture
) -> None:
    loader = open_loader(url)
    list(itertools.islice(loader, 5))
    state = loader.state_dict()
    for other in (
        open_loader(url, seed=4),
        open_loader(url, dataclasses.replace(CONFIG, row_tokens=64)),
        open_loader(url, dataclasses.replace(CONFIG, window_sequences=61)),
        open_loader(url, dataclasses.replace(CONFIG, held_out_share=0.1)),
    ):
        with pytest.raises(
            UserError, match=r"the saved position \(epoch 0, window 0, row 20\) is one in another"
        ):
            other.load_state_dict(state)
    write_shard(Path(url), "s5", token_spec, make_records(make_token_records, token_spec, 5, 20))
    grown = open_loader(url, dataclasses.replace(CONFIG, on_dataset_change="restart_epoch"))
    grown.load_state_dict(state)
    assert "epoch 0 is left, and epoch 1 begins" in caplog.text
    assert sorted(found.number for found in all_of(epoch_of(grown, 1))) == list(range(sum(COUNTS) + 20))
