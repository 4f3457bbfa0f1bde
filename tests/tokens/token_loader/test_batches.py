"""Token datasets in a training of one's own: rows by number, and batches under the loaders that people have."""

from __future__ import annotations

import itertools
import pickle
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tatok_pipe import TokenBatch, TokenDataset, TokenLoader
from tatok_pipe.errors import UserError
from tatok_pipe.records import Kind
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.token_loader.batches import (
    COUNTS,
    LAYOUTS,
    NUM_CLASSES,
    PADDED,
    SETTINGS,
    MakeRecords,
    numbers,
    spelled,
    write_dataset,
)


@LAYOUTS
def test_an_epoch_has_every_row_once(url: str, settings: dict[str, Any]) -> None:
    loader = TokenLoader(url, **settings, num_classes=NUM_CLASSES, epochs=1)
    dataset = TokenDataset(url)
    batches = list(loader)
    found = [each for batch in batches for each in spelled(batch, loader)]
    assert sorted(number for number, *_ in found) == list(range(sum(COUNTS))) == list(range(len(dataset)))
    for number, label, global_codes, patches in found:
        row = dataset[number]
        assert (label, global_codes) == (row.label, tuple(row.global_codes.tolist()))
        assert patches == dict(zip(row.patch_positions.tolist(), row.patch_codes.tolist(), strict=True))
    for batch in batches:
        assert batch.labels.tolist() == [dataset[number].label for number in batch.sequences.tolist()]
        assert batch.ids.max() < loader.vocab_size and batch.positions.max() < loader.num_positions
        stretches = np.diff(batch.boundaries.numpy())
        assert batch.boundaries[-1] == batch.ids.numel() and stretches.min() > 0
        is_begin = np.zeros(batch.ids.numel(), bool)
        is_begin[batch.boundaries[:-1].numpy()] = True
        assert np.array_equal(is_begin.reshape(batch.ids.shape), batch.order.numpy() == 0)
    assert all(batch.epoch == 0 for batch in batches) and next(iter(loader)).epoch == 1


def test_padded_rows_are_alike_in_length(url: str) -> None:
    padded = list(TokenLoader(url, **PADDED, epochs=1))
    assert len(padded) == -(-sum(COUNTS) // SETTINGS["rows_per_step"])
    used = sum(int((batch.kinds != Kind.PADDING).sum()) for batch in padded)
    longest = TokenLoader(url, **SETTINGS).num_positions
    assert used > 0.9 * sum(batch.ids.numel() for batch in padded)
    assert used < 0.8 * sum(COUNTS) * longest  # so that without sorting much would be padding
    lengths = [batch.ids.shape[1] for batch in padded]
    assert lengths not in (sorted(lengths), sorted(lengths)[::-1])  # the steps are shuffled
    assert [batch.ids.shape[0] for batch in padded] == [SETTINGS["rows_per_step"]] * len(padded)
    orders = [numbers(TokenLoader(url, **{**PADDED, "seed": seed}, epochs=1)) for seed in (3, 4)]
    assert numbers(padded) == orders[0] != orders[1]


def test_attention_sees_its_own_sequence_alone(url: str) -> None:
    batch = next(iter(TokenLoader(url, **SETTINGS)))
    mask = batch.attention_mask
    rows, tokens = batch.ids.shape
    assert mask.shape == (rows, 1, tokens, tokens)
    expected = torch.zeros(rows * tokens, rows * tokens, dtype=torch.bool)
    for start, stop in itertools.pairwise(batch.boundaries.tolist()):
        expected[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    for row in range(rows):
        piece = slice(row * tokens, (row + 1) * tokens)
        assert torch.equal(mask[row, 0], expected[piece, piece])


def test_conditions_are_hidden_and_held_out_images_apart(url: str) -> None:
    options = {**SETTINGS, "held_out_share": 0.3}
    train = TokenLoader(url, **options, num_classes=NUM_CLASSES, drop_condition=0.5, epochs=1)
    held_out = TokenLoader(url, **options, num_classes=NUM_CLASSES, drop_condition=0.5, split="held_out")
    trained = [each for batch in train for each in spelled(batch, train)]
    held = [each for batch in held_out for each in spelled(batch, held_out)]
    assert sorted(each[0] for each in trained + held) == list(range(sum(COUNTS)))
    assert 0 < len(held) < len(trained)
    share = sum(label == -1 for _, label, *_ in trained) / len(trained)
    assert 0.3 < share < 0.7 and all(label >= 0 for _, label, *_ in held)
    unasked = TokenLoader(url, **SETTINGS)
    assert {label for _, label, *_ in spelled(next(iter(unasked)), unasked)} == {-1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rows_per_step": 2.5}, "^rows_per_step=2.5: expected a whole number"),
        ({"rows_per_step": "2"}, "^rows_per_step='2': expected a whole number"),
        ({"seed": "0"}, "^seed='0': expected a whole number"),
        ({"version": "1"}, "^version of .*tokens='1': expected a whole number"),
        ({"weight_changes": {"5": [1]}}, "^weight_changes at step '5'='5': expected a whole number"),
    ],
)
def test_numbers_of_another_kind_are_told_at_once(url: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        TokenLoader(url, **given)


def test_a_condition_that_no_row_has_is_told(url: str) -> None:
    two: Any = np.int64(2)  # a whole number of NumPy's is one
    loader = TokenLoader(url, where="label = 77", rows_per_step=two)
    with pytest.raises(
        UserError, match=r"in this split and has label = 77; change where, or held_out_share=0.0, or"
    ):
        next(iter(loader))
    with pytest.raises(ValueError, match=r"url=\[\]: expected at least one dataset"):
        TokenLoader([])


def test_under_workers_an_epoch_is_the_same_steps_in_order(url: str) -> None:
    for epoch in range(2):
        alone, shared = (TokenLoader(url, **SETTINGS, epochs=1) for _ in range(2))
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        found = list(DataLoader(shared, batch_size=None, num_workers=3))
        assert numbers(found) == numbers(alone) and {batch.epoch for batch in found} == {epoch}
    persistent = DataLoader(
        TokenLoader(url, **SETTINGS, epochs=1), batch_size=None, num_workers=2, persistent_workers=True
    )
    alone = TokenLoader(url, **SETTINGS, epochs=1)
    for _ in range(3):
        assert numbers(persistent) == numbers(alone)


def test_under_workers_that_are_started_afresh(
    tmp_path: Path,
    token_spec: TokenSpec,
    make_token_records: MakeRecords,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goes to a spawned worker is pickled; it has row groups of the size that they really have."""
    monkeypatch.undo()
    url = write_dataset(tmp_path / "tokens", token_spec, make_token_records)
    loader = TokenLoader(url, **{**SETTINGS, "row_tokens": 64}, epochs=1)
    found = list(
        DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="spawn", timeout=120)
    )
    assert numbers(found) == numbers(loader)
    batch = found[0].to("cpu")
    assert isinstance(batch, TokenBatch) and torch.equal(batch.ids, found[0].ids)


def test_the_rank_is_that_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = TokenLoader(url, **SETTINGS, rank=1, num_ranks=2)
    assert numbers(itertools.islice(TokenLoader(url, **SETTINGS), 3)) == numbers(itertools.islice(given, 3))


def test_rows_by_number(url: str) -> None:
    dataset = TokenDataset(url)
    keys = [row.key for row in dataset]
    assert len(dataset) == len(keys) == sum(COUNTS) == dataset.num_rows
    for order in (range(len(dataset)), random.Random(0).sample(range(len(dataset)), len(dataset))):
        assert [dataset[number].key for number in order] == [keys[number] for number in order]
    assert [row.key for row in dataset[-3:]] == keys[-3:] and dataset[-1].key == keys[-1]
    assert dataset[5:2] == [] and [row.key for row in dataset[::40]] == keys[::40]
    for number in (len(keys), -len(keys) - 1):
        with pytest.raises(IndexError, match=f"row {number} of {len(keys)}"):
            dataset[number]
    row = dataset[7]
    row.global_codes[:] = 1
    row.patch_codes[:] = 1
    assert dataset[7].global_codes.tolist() == next(itertools.islice(dataset, 7, None)).global_codes.tolist()
    assert pickle.loads(pickle.dumps(dataset))[60].key == keys[60]
    global_codes, patch_codes, keep = dataset.to_tensors(dataset[:4])
    assert keep.sum(1).tolist() == [len(each.patch_codes) for each in dataset[:4]]
    patch_codes[~keep] = 5
    global_codes += 1


def test_rows_under_a_data_loader(url: str) -> None:
    dataset = TokenDataset(url)
    loader = DataLoader(cast(Any, dataset), batch_size=16, collate_fn=dataset.to_tensors, num_workers=2)
    global_codes = torch.cat([batch[0] for batch in loader])
    assert global_codes.tolist() == [row.global_codes.tolist() for row in dataset]
