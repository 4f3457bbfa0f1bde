from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Kind, PackedBatch, TokenRecord
from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.layout import DATASET_FILE
from tatok_pipe.tokens.loading import windows
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


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_format, "ROW_GROUP_ROWS", 16)
    monkeypatch.setattr(windows, "ROW_GROUP_ROWS", 16)


@pytest.fixture
def url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    folder = tmp_path / "tokens"
    create_or_check(str(folder), token_spec, {})
    (folder / "data").mkdir()
    for shard, count in enumerate(COUNTS):
        write_shard(
            folder, f"s{shard}", token_spec, make_records(make_token_records, token_spec, shard, count)
        )
    return str(folder)


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


def test_epochs_and_seeds_have_orders_of_their_own(url: str) -> None:
    def numbers(seed: int, epoch: int) -> list[int]:
        return [found.number for found in all_of(epoch_of(open_loader(url, seed=seed), epoch))]

    orders = {(seed, epoch): numbers(seed, epoch) for seed in (3, 4) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(sorted(order) == list(range(sum(COUNTS))) for order in orders.values())
    assert numbers(3, 1) == orders[3, 1]


def test_held_out_samples(url: str) -> None:
    config = dataclasses.replace(CONFIG, held_out_share=0.2)
    hidden = dataclasses.replace(CLASSES, drop_condition=1.0)
    keys = [record.key for record in TokenDataset(url).rows()]
    expected = [number for number, key in enumerate(keys) if zlib.crc32(key.encode()) / 2**32 < 0.2]
    assert 10 < len(expected) < 60
    training = all_of(epoch_of(open_loader(url, config, hidden)))
    loader = open_loader(url, config, hidden, split="held_out")
    steps = list(loader)
    held_out = all_of(steps)
    assert sorted(found.number for found in held_out) == expected
    assert sorted([found.number for found in training] + expected) == list(range(sum(COUNTS)))
    assert not any(found.is_conditional or found.has_budget for found in training)
    assert all(found.is_conditional and found.has_budget for found in held_out)
    every = expected_of(url)
    assert all(found == every[found.number] for found in held_out)
    assert [step.is_epoch_end for step in steps] == [False] * (len(steps) - 1) + [True]
    assert all_of(list(loader)) == held_out  # another pass, in the same order
    half = iter(loader)
    next(half)
    other = open_loader(url, config, hidden, split="held_out")
    other.load_state_dict(loader.state_dict())
    assert all_of(list(other)) == all_of(steps[1:])


def test_a_held_out_split_keeps_its_side_when_the_dataset_grows(
    url: str, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    config = dataclasses.replace(CONFIG, held_out_share=0.2)

    def keys() -> set[str]:
        every = [record.key for record in TokenDataset(url).rows()]
        return {every[found.number] for found in all_of(list(open_loader(url, config, split="held_out")))}

    before = keys()
    write_shard(Path(url), "s0a", token_spec, make_records(make_token_records, token_spec, 9, 40))
    after = keys()
    assert before < after and all(key.startswith("9/") for key in after - before)


def test_all_crops_of_an_image_are_on_one_side(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    config = dataclasses.replace(CONFIG, held_out_share=0.3)
    spec = dataclasses.replace(token_spec, encoding={"crops": {"kind": "random", "per_image": 3}})
    create_or_check(str(tmp_path), spec, {})
    (tmp_path / "data").mkdir()
    for shard in range(2):
        records = make_records(make_token_records, spec, shard, 90)
        rows = [
            dataclasses.replace(record, key=f"{shard}/{row // 3}", crop=row % 3)
            for row, record in enumerate(records)
        ]
        write_shard(tmp_path, f"s{shard}", spec, rows)
    every = [record.key for record in TokenDataset(str(tmp_path)).rows()]
    sides = [
        Counter(every[found.number] for found in all_of(steps))
        for steps in (
            epoch_of(open_loader(str(tmp_path), config)),
            list(open_loader(str(tmp_path), config, split="held_out")),
        )
    ]
    assert len(sides[0]) + len(sides[1]) == 60 and min(map(len, sides)) > 5
    assert not sides[0].keys() & sides[1].keys()
    assert all(set(side.values()) == {3} for side in sides)


def test_a_split_without_sequences(url: str) -> None:
    config = dataclasses.replace(CONFIG, held_out_share=1e-9)
    with pytest.raises(
        UserError, match="none of the 173 sequences is in this split; change held_out_share=1e-09"
    ):
        next(iter(open_loader(url, config, split="held_out")))
    with pytest.raises(UserError, match="held_out_share=0: nothing is held out; give more than 0"):
        open_loader(url, split="held_out")


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


@pytest.mark.parametrize(
    ("changes", "shown"), [({"label": None}, "None"), ({"label": 10}, "10"), ({"label": -1}, "-1")]
)
def test_labels_out_of_range(
    url: str, token_spec: TokenSpec, make_token_records: MakeRecords, changes: dict[str, Any], shown: str
) -> None:
    records = make_records(make_token_records, token_spec, 3, 16)
    records[5] = dataclasses.replace(records[5], **changes)
    write_shard(Path(url), "s3", token_spec, records)
    for config, row in (
        (CONFIG, "row 5"),
        (dataclasses.replace(CONFIG, held_out_share=0.01), "key '3/image-000005'"),
    ):
        with pytest.raises(
            UserError, match=rf"data/s3\.parquet: {row} has label {shown}, expected 0 to 9; set num_"
        ):
            epoch_of(open_loader(url, config))


def test_an_empty_dataset(tmp_path: Path, token_spec: TokenSpec) -> None:
    with pytest.raises(UserError, match="no _dataset.json there"):
        read_training_set(str(tmp_path))
    create_or_check(str(tmp_path), token_spec, {})
    with pytest.raises(UserError, match="0 committed shards with no rows; there is nothing to train on"):
        read_training_set(str(tmp_path))
    (tmp_path / "data").mkdir()
    write_shard(tmp_path, "a", token_spec, [])
    with pytest.raises(UserError, match="1 committed shards with no rows"):
        read_training_set(str(tmp_path))


def test_a_shard_of_another_dataset(url: str, token_spec: TokenSpec) -> None:
    write_shard(Path(url), "x", dataclasses.replace(token_spec, tokenizer_fingerprint="other"), [])
    with pytest.raises(RefusedError, match="x.parquet: was made with other settings"):
        read_training_set(url)


def test_listing_writes_nothing(url: str) -> None:
    before = sorted(path.name for path in Path(url).rglob("*"))
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    assert [(shard.name, shard.num_rows) for shard in shards] == [(f"s{i}", n) for i, n in enumerate(COUNTS)]
    assert spec == TokenDataset(url).spec
    assert sorted(path.name for path in Path(url).rglob("*")) == before


def test_shards_that_change_or_go(url: str, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    loader = open_loader(url)
    write_shard(Path(url), "s3", token_spec, make_records(make_token_records, token_spec, 3, 15))
    with pytest.raises(
        UserError, match=r"s3\.parquet: has 15 rows, it had 16 when the dataset was listed; .*--verify"
    ):
        epoch_of(loader)
    with Path(url, "data/s3.parquet").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(UserError, match=r"s3\.parquet: cannot be read: .*; .*--verify"):
        epoch_of(loader)
    Path(url, "data/s3.parquet").unlink()
    with pytest.raises(UserError, match=r"s3\.parquet.*; .*--verify") as error:
        epoch_of(loader)
    assert "\n" not in str(error.value)


def test_row_groups_of_another_program(url: str, token_spec: TokenSpec, make_token_records: MakeRecords,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with monkeypatch.context() as other:
        other.setattr(token_format, "ROW_GROUP_ROWS", 10)
        write_shard(Path(url), "s3", token_spec, make_records(make_token_records, token_spec, 3, 16))
    with pytest.raises(UserError, match=r"s3\.parquet: row group 0 has 10 rows, expected 16; "):
        epoch_of(open_loader(url))


def test_a_flipped_bit(url: str) -> None:
    path = Path(url, "data/s4.parquet")
    loader = open_loader(url)
    column = pq.read_metadata(path).row_group(2).column(8)
    assert column.path_in_schema.startswith("patch_codes")
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin + column.total_compressed_size - 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s4\.parquet: cannot be read: .*(CRC|checksum).*; .*--verify"):
        epoch_of(loader)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "num_ranks": 2}, "rank=2: expected 0 to num_ranks - 1 = 1"),
        ({"split": "test"}, "split='test': expected one of train, held_out"),
        ({"seed": -1}, "seed=-1: expected 0 to 4294967295"),
    ],
)
def test_wrong_arguments(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_loader(url, **options)


def test_sizes_that_do_not_go_with_the_tokenizer(url: str) -> None:
    with pytest.raises(UserError, match="row_tokens=19: expected at least 20, the longest sequence"):
        open_loader(url, dataclasses.replace(CONFIG, row_tokens=19))
    open_loader(url, dataclasses.replace(CONFIG, row_tokens=20))
    with pytest.raises(UserError, match="window_sequences=30000000: expected at most 26843545"):
        open_loader(url, dataclasses.replace(CONFIG, window_sequences=30_000_000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_per_step": 0}, "rows_per_step=0: expected at least 1"),
        ({"held_out_share": 1.0}, "held_out_share=1.0: expected 0 or more, and less than 1"),
        ({"on_dataset_change": "ignore"}, "on_dataset_change='ignore': expected one of error, restart_epoch"),
    ],
)
def test_config_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("token-")]


def wait_for_no_threads() -> None:
    until = time.monotonic() + 10
    while loader_threads() and time.monotonic() < until:
        time.sleep(0.005)
    assert not loader_threads()


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
