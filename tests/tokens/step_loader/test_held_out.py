"""The two sides of a split."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from pathlib import Path

import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.step_loader.steps import (
    CLASSES,
    CONFIG,
    COUNTS,
    MakeRecords,
    all_of,
    epoch_of,
    expected_of,
    make_records,
    open_loader,
    write_shard,
)


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
