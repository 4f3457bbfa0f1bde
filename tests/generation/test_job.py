"""The requests of a run against the plainest way to say what they are, row by row and place by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.ar.generation.job import GenerationPlan, Requests, StartPlan
from tatok_pipe.ar.options import SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, Place
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.dataset import TokenDataset
from tests.token_datasets import TINY, make_rows, write_token_dataset

SIDE = 4  # of the grid of TINY
PLAN = GenerationPlan(
    num_images=23,
    images_per_shard=5,
    seed=7,
    classes=(),
    sampling=SamplingConfig(),
    num_patches=None,
    embeddings_url=None,
    start=None,
)


def make(plan: GenerationPlan, *, embedding_dim: int = 0) -> list[ImageRequest]:
    """The requests of all shards."""
    requests = Requests(plan, grid_side=SIDE, embedding_dim=embedding_dim)
    shards = [list(requests.shard(index)) for index in range(plan.num_shards)]
    assert all(len(shard) == plan.images_per_shard for shard in shards[:-1]) and shards[-1]
    return [request for shard in shards for request in shard]


def plain(request: ImageRequest) -> tuple[object, ...]:
    """What can be compared."""
    arrays = (request.embedding, request.global_codes, request.patches)
    return (
        request.number,
        request.seed,
        request.label,
        request.num_patches,
        *(None if array is None else array.tolist() for array in arrays),
    )


def write_vectors(path: Path, vectors: np.ndarray) -> str:
    pq.write_table(pa.table({"embedding": list(vectors)}), path)
    return str(path)


def write_start(folder: Path, counts: Sequence[int]) -> str:
    """A token dataset with so many rows in its shards."""
    first = np.cumsum([0, *counts])
    write_token_dataset(
        str(folder), [make_rows(n, first=int(at)) for n, at in zip(counts, first[:-1], strict=True)]
    )
    return str(folder)


def expected_start(start: StartPlan, row: TokenRecord) -> tuple[list[int] | None, list[int]]:
    """Globals and places, as the options' help says it."""
    there = dict(zip(row.patch_positions.tolist(), row.patch_codes.tolist(), strict=True))
    places = []
    for at_row in range(SIDE):
        for at_column in range(SIDE):
            if at_row in range(*start.rows) and at_column in range(*start.columns):
                places.append(there.get(at_row * SIDE + at_column, int(Place.ABSENT)))
            else:
                places.append(int(Place.FREE))
    return row.global_codes.tolist() if start.keep_globals else None, places


@pytest.mark.parametrize(
    ("num_images", "images_per_shard"), [(1, 1), (1, 9), (9, 9), (10, 9), (23, 1), (23, 4)]
)
def test_shards_share_the_numbers_out(num_images: int, images_per_shard: int) -> None:
    plan = replace(PLAN, num_images=num_images, images_per_shard=images_per_shard)
    shards = [plan.numbers(index) for index in range(plan.num_shards)]
    assert [number for shard in shards for number in shard] == list(range(num_images))
    assert all(1 <= len(shard) <= images_per_shard for shard in shards)


def test_seeds_are_of_the_run_and_the_number() -> None:
    seeds = {
        (seed, request.number): request.seed
        for seed in (0, 1, 7)
        for request in make(replace(PLAN, seed=seed, num_images=200))
    }
    assert len(set(seeds.values())) == 600 and all(0 <= seed < 1 << 64 for seed in seeds.values())
    more = make(replace(PLAN, num_images=300, images_per_shard=11, classes=(1, 2)))
    assert [request.seed for request in more[:200]] == [seeds[7, number] for number in range(200)]


def test_classes_and_embeddings_come_in_turn(tmp_path: Path) -> None:
    assert [request.label for request in make(PLAN)] == [None] * 23
    labels = [request.label for request in make(replace(PLAN, classes=(5, 0, 3)))]
    assert labels == ([5, 0, 3] * 8)[:23]
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    url = write_vectors(tmp_path / "vectors.parquet", vectors)
    requests = make(replace(PLAN, embeddings_url=url), embedding_dim=6)
    for number, request in enumerate(requests):
        assert request.embedding is not None and np.array_equal(request.embedding, vectors[number % 4])


def test_all_are_asked_for_the_same_number_of_patches() -> None:
    assert {request.num_patches for request in make(PLAN)} == {None}
    assert {request.num_patches for request in make(replace(PLAN, num_patches=0))} == {0}


def test_requests_do_not_depend_on_shards(tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "vectors.parquet", np.arange(12.0, dtype=np.float32).reshape(6, 2))
    start = StartPlan(write_start(tmp_path / "tokens", [3, 6]), True, (0, 2), (1, 4))
    plan = replace(PLAN, classes=(1, 2, 3), num_patches=5, embeddings_url=vectors, start=start)
    expected = [plain(request) for request in make(plan, embedding_dim=2)]
    assert [request[0] for request in expected] == list(range(23))
    assert (
        len({str(request[2:]) for request in expected}) == 18
    )  # the least common multiple of 3, 6 and 9 rows
    for images_per_shard in (1, 2, 7, 22, 23, 100):
        other = replace(plan, images_per_shard=images_per_shard)
        assert [plain(request) for request in make(other, embedding_dim=2)] == expected
    # And shards not on what was asked before: of any order, again, half of one.
    requests = Requests(plan, grid_side=SIDE, embedding_dim=2)
    for shard in (4, 0, 3, 0):
        next(iter(requests.shard(1)))
        assert [plain(request) for request in requests.shard(shard)] == expected[5 * shard : 5 * shard + 5]
    # More images are the same ones first.
    more = make(replace(plan, num_images=40), embedding_dim=2)
    assert [plain(request) for request in more[:23]] == expected


@pytest.mark.parametrize(
    "counts", [[40], [23], [7], [1], [3, 6], [1, 1, 1], [4, 0, 5], [0, 2], [2, 9, 1, 30]]
)
def test_image_i_starts_from_row_i(tmp_path: Path, counts: list[int]) -> None:
    url = write_start(tmp_path / "tokens", counts)
    rows = list(TokenDataset(url).rows())
    assert len(rows) == sum(counts) and len({row.key for row in rows}) == len(rows)
    start = StartPlan(url, True, (1, 3), (0, SIDE))
    for images_per_shard in (1, 5, 23):
        requests = make(replace(PLAN, images_per_shard=images_per_shard, start=start))
        for number, request in enumerate(requests):
            _, globals_, places = plain(request)[-3:]
            assert (globals_, places) == expected_start(start, rows[number % len(rows)]), number


SPANS = [(0, 0), (0, SIDE), (0, 1), (3, 4), (1, 3)]


@pytest.mark.parametrize("keep_globals", [True, False])
@pytest.mark.parametrize("span", SPANS)
def test_what_is_kept(tmp_path: Path, span: tuple[int, int], keep_globals: bool) -> None:
    url = write_start(tmp_path / "tokens", [9])
    dataset_rows = list(TokenDataset(url).rows())
    for columns in SPANS:
        start = StartPlan(url, keep_globals, span, columns)
        seen = set()
        for row, request in zip(dataset_rows, make(replace(PLAN, num_images=9, start=start)), strict=True):
            _, globals_, places = plain(request)[-3:]
            assert (globals_, places) == expected_start(start, row)
            assert request.patches is not None and request.patches.shape == (TINY.num_patches,)
            seen |= {min(code, 0) for code in request.patches.tolist()}  # 0 for all codes
        keeps_all, keeps_nothing = span == columns == (0, SIDE), (0, 0) in (span, columns)
        assert (Place.FREE in seen) == (not keeps_all)
        assert (Place.ABSENT in seen) == (0 in seen) == (not keeps_nothing)


def test_a_token_shard_is_read_once_for_images_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run takes time that grows with the square of the rows."""
    start = StartPlan(write_start(tmp_path / "tokens", [10, 10, 10]), True, (0, 0), (0, 0))
    read: list[str | None] = []
    original = TokenDataset.rows
    monkeypatch.setattr(
        TokenDataset, "rows", lambda self, shard=None: read.append(shard) or original(self, shard)
    )
    requests = Requests(
        replace(PLAN, num_images=70, images_per_shard=35, start=start), grid_side=SIDE, embedding_dim=0
    )
    names = TokenDataset(start.url).shards
    assert len(list(requests.shard(0))) == 35
    assert read == [*names, names[0]]
    read.clear()
    assert len(list(requests.shard(1))) == 35
    assert read == [names[0], names[1], names[2], names[0]]
