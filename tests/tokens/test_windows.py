from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.tokens.format import ROW_GROUP_ROWS
from tatok_pipe.tokens.loading.windows import (
    Draw,
    EpochPlanner,
    RowGroups,
    ShardRows,
    generator,
    is_held_out,
    random_shares,
    stream_digest,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3 * ROW_GROUP_ROWS), min_size=1, max_size=12),
    st.integers(1, 8 * ROW_GROUP_ROWS),
    st.integers(0, 3),
)
def test_windows_hold_every_row_once(counts: list[int], window_rows: int, epoch: int) -> None:
    shards = [ShardRows(f"{index:03d}", count) for index, count in enumerate(counts)]
    planner = EpochPlanner(RowGroups([shards[::-1]]), window_rows=window_rows, seed=7)
    windows = [planner.groups(window) for window in planner.windows(epoch)]
    found = [
        np.arange(group.shard_begin + group.first_row, group.shard_begin + group.first_row + group.num_rows)
        for window in windows
        for group in window
    ]
    assert sorted(np.concatenate([*found, np.zeros(0, np.int64)]).tolist()) == list(range(sum(counts)))
    begins = dict(zip((shard.name for shard in shards), np.cumsum([0, *counts]), strict=False))
    for group in (group for window in windows for group in window):
        assert group.shard_begin == begins[group.shard]
        assert group.shard_rows == counts[int(group.shard)]
    sizes = [sum(group.num_rows for group in window) for window in windows]
    assert all(sizes)
    if sizes:
        aim = max(window_rows, ROW_GROUP_ROWS)
        assert len(sizes) <= planner.num_windows
        assert max(sizes) <= 1.5 * aim + ROW_GROUP_ROWS


def test_every_epoch_has_an_order_of_its_own() -> None:
    shards = [ShardRows(f"{index:03d}", 5 * ROW_GROUP_ROWS) for index in range(20)]

    def order(seed: int, epoch: int) -> list[int]:
        planner = EpochPlanner(RowGroups([shards]), window_rows=10_000, seed=seed)
        return np.concatenate(planner.windows(epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_no_two_draws_share_a_stream() -> None:
    draws = [
        tuple(generator(seed, epoch, window, draw).bit_generator.random_raw(2))
        for seed in range(3)
        for epoch in range(3)
        for window in range(3)
        for draw in Draw
    ]
    assert len(set(draws)) == len(draws)


def test_shares_are_uniform() -> None:
    shares = random_shares(100_000, generator(0, 0, 0, Draw.CONDITIONS))
    assert shares.min() >= 0 and shares.max() < 1
    np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0], 10_000, rtol=0.05)


def test_held_out_by_the_hash_of_the_key() -> None:
    keys = [f"image-{index}".encode() for index in range(20_000)]
    chosen = is_held_out(keys, 0.1)
    assert chosen.mean() == pytest.approx(0.1, abs=0.01)
    assert chosen.tolist() == [zlib.crc32(key) / 2**32 < 0.1 for key in keys]
    assert not (chosen & ~is_held_out(keys, 0.2)).any()  # a larger share adds to it
    assert not is_held_out(keys, 0.0).any()


def test_the_digest_tells_streams_apart() -> None:
    shards = [ShardRows("a", 5), ShardRows("b", 6)]
    digests = {
        stream_digest(shards, seed=1, split="train"),
        stream_digest(shards, seed=2, split="train"),
        stream_digest(shards, seed=1, split="held_out"),
        stream_digest(shards[:1], seed=1, split="train"),
        stream_digest([ShardRows("a", 6), ShardRows("b", 5)], seed=1, split="train"),
        stream_digest([ShardRows("a", 5), ShardRows("c", 6)], seed=1, split="train"),
    }
    assert len(digests) == 6
    assert (
        stream_digest(shards[::-1], split="train", seed=1) in digests
    )  # the order of a listing means nothing
