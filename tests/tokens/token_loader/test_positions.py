"""Going on from where another loader was, with other ranks and workers."""

from __future__ import annotations

import itertools
import json
import pickle
import random
from collections.abc import Iterable
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tatok_pipe import TokenBatch, TokenLoader
from tatok_pipe.errors import UserError
from tests.tokens.token_loader.batches import (
    NUM_CLASSES,
    PADDED,
    SETTINGS,
    numbers,
    step_of,
)


def loaded(loader: TokenLoader, num_workers: int) -> Iterable[TokenBatch]:
    return DataLoader(loader, batch_size=None, num_workers=num_workers) if num_workers else loader


@pytest.mark.parametrize(
    ("settings", "is_mixed"),
    [
        (SETTINGS, False),
        (PADDED, False),
        (SETTINGS, True),
        pytest.param(PADDED, True, marks=pytest.mark.slow),
    ],
    ids=["packed", "padded", "packed-mixed", "padded-mixed"],
)
def test_it_goes_on_anywhere_with_other_ranks_and_workers(
    url: str, other_url: str, settings: dict[str, Any], is_mixed: bool
) -> None:
    """Twenty stops, each followed by another number of ranks and workers: the undisturbed order of one process."""
    options = {**settings, "num_classes": NUM_CLASSES, "url": url}
    if is_mixed:
        options |= {"url": [url, other_url], "weights": [3, 1], "weight_changes": {9: [1, 2], 40: [5, 1]}}
    undisturbed = (step_of([batch]) for batch in TokenLoader(**options))
    draw, state = random.Random(0), None
    for stop in range(20):
        num_ranks, num_workers = draw.choice((1, 2, 3, 4, 8)), draw.choice((0, 0, 1, 2, 3))
        loaders = [TokenLoader(**options, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(json.loads(json.dumps(state)))
        # One rank has workers, as they take most of the time.
        ranks = [iter(loaded(loader, num_workers if not rank else 0)) for rank, loader in enumerate(loaders)]
        for _ in range(draw.randint(1, 5)):
            batches = [next(rank) for rank in ranks]
            assert step_of(batches) == next(undisturbed), (
                f"stop {stop}: {num_ranks} ranks, {num_workers} workers"
            )
            assert all(batch.state == batches[0].state for batch in batches)
            state = batches[0].state
    assert state is not None and state["step"] > 40  # so that all weights came


def test_a_window_that_was_cut_goes_on_with_other_steps(url: str, other_url: str) -> None:
    """Weights change at the fifth step, which ends a window early; where in it a stop came, its rest is the same."""
    options = {**SETTINGS, "url": [url, other_url], "weights": [3, 1], "weight_changes": {5: [1, 3]}}
    whole = [step_of([batch]) for batch in itertools.islice(TokenLoader(**options), 5)]
    [*_, last] = itertools.islice(TokenLoader(**options), 4)
    assert last.state["mix"]["size"] < SETTINGS["window_sequences"] and last.state["row"] > 0
    loader = TokenLoader(**{**options, "rows_per_step": 2})
    loader.load_state_dict(last.state)
    rest = [step_of([batch]) for batch in itertools.islice(loader, 3)]
    assert [row for step in rest for row in step] == whole[4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_under_a_stateful_data_loader(url: str, num_workers: int) -> None:
    def open_loader() -> StatefulDataLoader[TokenBatch]:
        return StatefulDataLoader(TokenLoader(url, **SETTINGS), batch_size=None, num_workers=num_workers)

    undisturbed = numbers(itertools.islice(TokenLoader(url, **SETTINGS), 40))
    for stop in (1, 2, 5, 30):
        loader = open_loader()
        found = numbers(itertools.islice(loader, stop))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        again = open_loader()
        again.load_state_dict(state)
        found += numbers(itertools.islice(again, 40 - stop))
        assert found == undisturbed


def test_what_cannot_go_on_is_told(url: str) -> None:
    state = TokenLoader(url, **SETTINGS).state_dict()
    other = TokenLoader(url, **{**SETTINGS, "seed": 4})
    with pytest.raises(UserError, match="the saved position .* is one in another stream"):
        other.load_state_dict(state)
    padded = TokenLoader(url, **PADDED).state_dict()
    fewer = TokenLoader(url, **{**PADDED, "rows_per_step": 5})
    with pytest.raises(UserError, match="another stream"):
        fewer.load_state_dict(padded)
    with pytest.raises(UserError, match="row_tokens=8: expected at least"):
        TokenLoader(url, row_tokens=8)
    for wrong, told in (
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"layout": "padded"}, "row_tokens=40 with layout='padded': expected none"),
        ({"layout": "tight"}, "layout='tight': expected one of packed, padded"),
        ({"rank": 1}, "rank=1, num_ranks=None: give both"),
        ({"rank": 2, "num_ranks": 2}, "rank=2: expected 0 to num_ranks - 1 = 1"),
    ):
        with pytest.raises(ValueError, match=told):
            TokenLoader(url, **{**SETTINGS, **wrong})
