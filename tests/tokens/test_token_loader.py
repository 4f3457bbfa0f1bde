"""Token datasets in a training of one's own: rows by number, and batches under the loaders that people have."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tatok_pipe import TokenBatch, TokenDataset, TokenLoader
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Kind, TokenRecord
from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens import random_rows
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.loading import windows
from tatok_pipe.tokens.spec import TokenSpec

COUNTS = (50, 37, 0, 16, 70)  # rows of the shards
OTHER_COUNTS = (21, 20)  # of another dataset
NUM_CLASSES = 10
PADDED: dict[str, Any] = {"rows_per_step": 6, "window_sequences": 60, "seed": 3, "layout": "padded"}
SETTINGS: dict[str, Any] = {**PADDED, "layout": "packed", "row_tokens": 40}
LAYOUTS = pytest.mark.parametrize("settings", [SETTINGS, PADDED], ids=["packed", "padded"])


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (token_format, windows, random_rows):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 16)


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


@pytest.fixture
def url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    return write_dataset(tmp_path / "tokens", token_spec, make_token_records)


@pytest.fixture
def other_url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    return write_dataset(tmp_path / "others", token_spec, make_token_records, OTHER_COUNTS, first_seed=100)


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


def loaded(loader: TokenLoader, num_workers: int) -> Iterable[TokenBatch]:
    return DataLoader(loader, batch_size=None, num_workers=num_workers) if num_workers else loader


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


@LAYOUTS
def test_a_mix_has_its_weights_to_an_image_and_from_their_very_steps(
    url: str, other_url: str, settings: dict[str, Any]
) -> None:
    changes = {7: (1, 1), 30: (1, 9)}
    loader = TokenLoader([url, other_url], weights=[3, 1], weight_changes=changes, **settings)
    datasets, seen = [TokenDataset(url), TokenDataset(other_url)], [Counter(), Counter()]
    stretches = [np.zeros(2, np.int64) for _ in range(3)]
    for number, batch in enumerate(itertools.islice(loader, 60)):
        # No step is short: a mix has no end of an epoch.
        assert batch.epoch == 0 and (batch.kinds.ravel() == Kind.CONDITION).sum() >= settings["rows_per_step"]
        stretches[(number >= 7) + (number >= 30)] += np.bincount(batch.sources, minlength=2)
        for source, row, codes in zip(
            batch.sources.tolist(), batch.sequences.tolist(), (each[2] for each in spelled(batch, loader)),
            strict=True,
        ):  # fmt: skip
            seen[source][row] += 1
            assert codes == tuple(datasets[source][row].global_codes.tolist())
    for found, share in zip(stretches[:2], (3 / 4, 1 / 2), strict=True):
        assert abs(found[0] - share * found.sum()) <= 1
    assert 0.05 < stretches[2][0] / stretches[2].sum() < 0.15  # the last window is not at its end
    # Each goes through its own images, all of them before one comes again; a window is shuffled.
    for counts, dataset in zip(seen, datasets, strict=True):
        times = [counts[row] for row in range(len(dataset))]
        assert max(times) - min(times) <= 2
    assert min(seen[1][row] for row in range(len(datasets[1]))) >= 2


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


def test_what_is_held_out_of_a_mix_comes_once(url: str, other_url: str) -> None:
    options = {**SETTINGS, "url": [url, other_url], "held_out_share": 0.3}
    held_out = [
        pair for batch in TokenLoader(**options, split="held_out") for row in step_of([batch]) for pair in row
    ]
    trained = {
        pair
        for batch in itertools.islice(TokenLoader(**options), 90)
        for row in step_of([batch])
        for pair in row
    }
    assert len(held_out) == len(set(held_out)) and not trained & set(held_out)
    everything = {(0, row) for row in range(sum(COUNTS))} | {(1, row) for row in range(sum(OTHER_COUNTS))}
    assert trained | set(held_out) == everything


def test_classes_of_a_mix_are_those_of_one_name(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    names = (("cat", "crane", "dog", "crane"), ("crane", "fox", "crane", "cat", "owl"))
    urls = []
    for number, each in enumerate(names):
        spec = dataclasses.replace(token_spec, class_names=each)
        folder = tmp_path / f"named{number}"
        create_or_check(str(folder), spec, {})
        (folder / "data").mkdir()
        records = [
            dataclasses.replace(record, label=place % len(each))
            for place, record in enumerate(make_token_records(spec, 30, seed=number))
        ]
        with ShardWriter(folder / "data/s.parquet", spec, ShardSource("/s.tar", 1)) as writer:
            writer.append(records)
        urls.append(str(folder))
    loader = TokenLoader(urls, **SETTINGS, num_classes=6)
    assert loader.spec.class_names == ("cat", "crane", "dog", "crane", "fox", "owl")
    found = {0: set(), 1: set()}
    for batch in itertools.islice(loader, 30):
        for source, row, label in zip(
            batch.sources.tolist(), batch.sequences.tolist(), batch.labels.tolist(), strict=True
        ):
            assert loader.spec.class_names[label] == names[source][row % len(names[source])]
            found[source].add(label)
    assert found == {0: {0, 1, 2, 3}, 1: {0, 1, 3, 4, 5}}  # the second crane of one is that of the other
    with pytest.raises(UserError, match="num_classes=5: the datasets have 6 classes by their names"):
        TokenLoader(urls, **SETTINGS, num_classes=5)
    nameless = write_dataset(tmp_path / "nameless", token_spec, make_token_records, (20,))
    with pytest.raises(UserError, match="nameless: has no names of classes, and .*named0 has"):
        TokenLoader([urls[0], nameless], **SETTINGS, num_classes=6)
    assert next(iter(TokenLoader([urls[0], nameless], **SETTINGS))).labels.tolist()[0] == 0


def test_what_cannot_be_mixed_is_told(
    url: str, other_url: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    strange = dataclasses.replace(token_spec, tokenizer_fingerprint="ab" * 32)
    with pytest.raises(
        RefusedError, match=r"others2 and .*tokens: tokens of other tokenizers.*fingerprint: abab"
    ):
        TokenLoader([url, write_dataset(tmp_path / "others2", strange, make_token_records)])
    with pytest.raises(UserError, match=r"tokens: is given twice; give a dataset once"):
        TokenLoader([url, other_url, url])
    copy = shutil.copytree(url, tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy: has the same token shards as .*tokens; give"):
        TokenLoader([url, str(copy)])
    with pytest.raises(ValueError, match=r"weights=\[1, 0\]: expected more than 0 each"):
        TokenLoader([url, other_url], weights=[1, 0])
    with pytest.raises(ValueError, match="epochs=1 with 2 datasets: expected none"):
        TokenLoader([url, other_url], epochs=1)
    for version in (1, [None]):
        with pytest.raises(ValueError, match="with 2 datasets: expected a version of each"):
            TokenLoader([url, other_url], version=version)
    with pytest.raises(UserError, match="has no version 7"):
        TokenLoader([url, other_url], version=[None, 7])
    state = next(iter(TokenLoader([url, other_url], **SETTINGS, weights=[3, 1]))).state
    for change in (
        {"weights": [1, 3]}, {"weights": [3, 1], "weight_changes": {9: [1, 1]}}, {"weights": [3, 1], "url": url},
        {"weights": [3, 1], "url": [other_url, url]},
    ):  # fmt: skip
        given = {**SETTINGS, "url": [url, other_url], **change}
        if given["url"] == url:
            del given["weights"]
        with pytest.raises(
            UserError, match="is one in another stream: the datasets, their versions, .*weights"
        ):
            TokenLoader(**given).load_state_dict(state)
    Path(other_url, "data/s1.parquet").unlink()  # another version
    with pytest.raises(UserError, match="another stream"):
        TokenLoader([url, other_url], **SETTINGS, weights=[3, 1]).load_state_dict(state)


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
