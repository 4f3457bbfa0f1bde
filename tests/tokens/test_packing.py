from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.tokens.loading.packing import Packing, pack, permutation, rank_rows, rows_per_rank


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """Room left in each row, by the textbook: longest first, into the row with the least room that is enough."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(row_tokens - length)
    return rooms


def rows_of(packing: Packing) -> list[list[int]]:
    return [part.tolist() for part in np.split(packing.sequences, packing.starts[1:-1])]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_rows_are_those_of_plain_best_fit_decreasing(data: st.DataObject) -> None:
    row_tokens = data.draw(st.integers(1, 60))
    lengths = data.draw(st.lists(st.integers(1, row_tokens), max_size=120))
    packing = pack(np.array(lengths, np.int32), row_tokens=row_tokens, random=generator(len(lengths)))
    assert sorted(packing.sequences.tolist()) == list(range(len(lengths)))
    assert packing.sequences.dtype == packing.starts.dtype == np.int64
    assert packing.starts[0] == 0 and packing.starts[-1] == len(lengths)
    rows = rows_of(packing) if packing.num_rows else []
    rooms = [row_tokens - sum(lengths[index] for index in row) for row in rows]
    assert all(0 <= room < row_tokens for room in rooms)
    assert sorted(rooms) == sorted(plain_best_fit(lengths, row_tokens))
    if lengths:
        assert packing.fill == pytest.approx(sum(lengths) / (packing.num_rows * row_tokens))


def test_worked_by_hand() -> None:
    lengths = np.array([4, 3, 6, 4, 3, 7])  # 7 + 3, 6 + 4, 4 + 3
    packing = pack(lengths, row_tokens=10, random=generator())
    assert sorted(sorted(lengths[row].tolist()) for row in rows_of(packing)) == [[3, 4], [3, 7], [4, 6]]
    assert packing.fill == 27 / 30


def test_no_sequences() -> None:
    packing = pack(np.array([], np.int64), row_tokens=10, random=generator())
    assert packing.num_rows == 0 and len(packing.sequences) == 0 and packing.fill == 1.0


def test_the_seed_decides_everything() -> None:
    lengths = generator(5).integers(1, 60, 2000)
    first, again, other = (pack(lengths, row_tokens=100, random=generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.sequences, again.sequences)
    np.testing.assert_array_equal(first.starts, again.starts)
    assert not np.array_equal(first.sequences, other.sequences)
    assert {tuple(sorted(row)) for row in rows_of(first)} != {tuple(sorted(row)) for row in rows_of(other)}
    assert first.num_rows == other.num_rows


def test_the_order_is_the_same_on_every_platform() -> None:
    # From the raw stream of PCG64, which NumPy promises never to change.
    assert permutation(8, generator(3)).tolist() == [0, 4, 7, 1, 5, 6, 3, 2]
    packing = pack(np.array([5, 5, 3, 2, 8, 1, 1]), row_tokens=10, random=generator(3))
    assert rows_of(packing) == [[1, 0], [6, 2, 5], [4, 3]]


def test_rows_and_their_sequences_are_shuffled() -> None:
    lengths = generator(0).integers(1, 200, 5000)
    packing = pack(lengths, row_tokens=1000, random=generator(1))
    rows = rows_of(packing)
    longest = np.array([lengths[row].max() for row in rows])
    assert (
        abs(np.corrcoef(np.arange(len(rows)), longest)[0, 1]) < 0.2
    )  # best-fit alone has them descend: -0.9
    signs = [np.sign(lengths[row[0]] - lengths[row[-1]]) for row in rows]
    assert np.count_nonzero(signs) > 50 and abs(np.mean(signs)) < 0.1  # best-fit alone: 1


def test_equal_lengths_are_shuffled_too() -> None:
    packing = pack(np.full(1000, 10), row_tokens=100, random=generator(1))
    neighbours = np.abs(np.diff(np.sort(packing.sequences.reshape(100, 10), axis=1), axis=1)) == 1
    assert neighbours.mean() < 0.05


# Every twentieth part of the numbers of kept patches: 1,500 CIFAR-10 images and the demo corpus, with the tokenizer of
# the package and its default filter.
CIFAR = (3, 29, 40, 51, 58, 64, 72, 78, 83, 90, 96, 102, 108, 114, 120, 128, 135, 144, 154, 173, 229)
DEMO = (1, 1, 4, 12, 18, 24, 31, 45, 65, 82, 89, 101, 110, 121, 134, 144, 155, 173, 195, 214, 239)


def lengths_like(quantiles: Sequence[int], count: int) -> np.ndarray:
    kept = np.interp(generator(4).random(count), np.linspace(0, 1, len(quantiles)), quantiles)
    return 1 + 16 + kept.round().astype(np.int64)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param(generator(0).integers(32, 257, 32_768), id="uniform"),
        pytest.param(lengths_like(CIFAR, 32_768), id="CIFAR-10"),
        pytest.param(lengths_like(DEMO, 32_768), id="demo"),
        pytest.param(generator(0).geometric(0.02, 32_768).clip(1, 600), id="geometric"),
    ],
)
def test_rows_of_4096_are_full(lengths: np.ndarray) -> None:
    packing = pack(lengths, row_tokens=4096, random=generator(1))
    assert packing.fill >= 0.995
    assert packing.num_tokens == lengths.sum()


@pytest.mark.parametrize("quantiles", [CIFAR, DEMO], ids=["CIFAR-10", "demo"])
@pytest.mark.parametrize("count", [1, 40, 544, 1500])
def test_a_small_corpus_takes_the_least_number_of_rows(quantiles: Sequence[int], count: int) -> None:
    lengths = lengths_like(quantiles, count)
    packing = pack(lengths, row_tokens=4096, random=generator(1))
    assert packing.num_rows == -(-lengths.sum() // 4096)
    # Rows of few sequences cannot all be filled to the brim.
    packing = pack(lengths, row_tokens=512, random=generator(1))
    assert packing.num_rows <= 1.01 * (lengths.sum() / 512) + 1


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            [5, 101, 3],
            r"a sequence of 101 tokens \(number 1\): expected at most row_tokens=100; raise row_tokens",
        ),
        ([5, 3, 0], r"a sequence of 0 tokens \(number 2\): expected at least 1; leave it out"),
        ([-4], r"a sequence of -4 tokens"),
    ],
)
def test_lengths_that_cannot_be_packed(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(np.array(lengths), row_tokens=100, random=generator())


def test_it_keeps_up() -> None:
    lengths = generator(0).integers(32, 257, 65_536)
    pack(lengths, row_tokens=4096, random=generator())
    start = time.process_time()
    pack(lengths, row_tokens=4096, random=generator())
    assert len(lengths) / (time.process_time() - start) > 200_000  # a tenth of what it does on one core


@pytest.mark.parametrize(("rows_per_step", "num_ranks"), [(8, 1), (8, 2), (8, 3), (5, 8), (1, 4), (7, 7)])
def test_ranks_share_all_rows(rows_per_step: int, num_ranks: int) -> None:
    num_rows, first_place = 61, 3 % rows_per_step
    shares = [
        rank_rows(
            num_rows, first_place=first_place, rows_per_step=rows_per_step, rank=rank, num_ranks=num_ranks
        )
        for rank in range(num_ranks)
    ]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_rows))
    for rank, share in enumerate(shares):
        steps = (share + first_place) // rows_per_step
        for step in set(steps.tolist()):
            places = (share[steps == step] + first_place) % rows_per_step
            assert len(places) <= rows_per_rank(rows_per_step, num_ranks)
            assert (places % num_ranks == rank).all() and (np.diff(places) == num_ranks).all()


def test_ranks_are_counted_from_0() -> None:
    with pytest.raises(ValueError, match="rank=2: expected 0 to num_ranks - 1 = 1; count ranks from 0"):
        rank_rows(5, first_place=0, rows_per_step=4, rank=2, num_ranks=2)
