"""What a run generates, and the request that makes each image: a function of the run's settings and its number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tatok_pipe import storage
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, Place
from tatok_pipe.records import TokenRecord
from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokens.dataset import HasTokens, TokenDataset
from tatok_pipe.tokens.loading.embeddings import read_vectors


@dataclass(frozen=True)
class StartPlan:
    """What is kept of images of a token dataset; image i starts from row i, and after the last one from the first."""

    url: str
    keep_globals: bool
    rows: tuple[int, int]  # of the grid of patches, from and to; what lies outside is drawn anew
    columns: tuple[int, int]


@dataclass(frozen=True)
class GenerationPlan:
    """All images of a run. The same plan gives the same images."""

    num_images: int
    images_per_shard: int
    seed: int
    classes: tuple[int, ...]  # taken in turn; empty: no class
    sampling: SamplingConfig
    num_patches: int | None  # asked for
    embeddings_url: str | None
    start: StartPlan | None

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.images_per_shard)

    def numbers(self, shard: int) -> range:
        """The images of a shard."""
        first = shard * self.images_per_shard
        return range(first, min(self.num_images, first + self.images_per_shard))


def describe(plan: GenerationPlan) -> str:
    """How the images are drawn, in one line for people: what is not as usual, and the seed."""

    def drawn(config: DrawConfig) -> str:
        options = [f"temperature {config.temperature:g}"]
        options += [f"top-k {config.top_k}"] if config.top_k else []
        options += [f"top-p {config.top_p:g}"] if config.top_p < 1 else []
        options += [f"guidance {config.guidance:g}"] if config.guidance != 1 else []
        return ", ".join(options)

    sampling = plan.sampling
    parts = [f"codes: {drawn(sampling.codes)}", f"positions: {drawn(sampling.positions)}"]
    if sampling.is_guided and sampling.guidance_schedule != "constant":
        parts.append(f"{sampling.guidance_schedule} guidance")
    if sampling.max_patches is not None:
        parts.append(f"at most {sampling.max_patches} patches")
    if plan.num_patches is not None:
        parts.append(f"about {plan.num_patches} patches asked for")
    if plan.start is not None:
        parts.append(f"parts of {storage.redact(plan.start.url)}")
    return "; ".join([*parts, f"seed {plan.seed}"])


class Requests:
    """The requests of a plan, for a generator whose embeddings have `embedding_dim` numbers (0: it takes none)."""

    def __init__(self, plan: GenerationPlan, *, grid_side: int, embedding_dim: int) -> None:
        self._plan = plan
        self._grid_side = grid_side
        self._embeddings = (
            read_vectors(plan.embeddings_url, size=embedding_dim) if plan.embeddings_url else None
        )
        self._start: TokenDataset | None = None
        self._first_rows: np.ndarray | None = None
        if plan.start is not None:
            self._start = TokenDataset(plan.start.url)
            counts = [self._start.shard_metadata(name).num_rows for name in self._start.shards]
            self._first_rows = np.cumsum([0, *counts])

    def shard(self, index: int) -> Iterator[ImageRequest]:
        plan = self._plan
        numbers = plan.numbers(index)
        starts = self._starts(numbers) if self._start is not None else [None] * len(numbers)
        for number, start in zip(numbers, starts, strict=True):
            global_codes, patches = self._keep(start) if start is not None else (None, None)
            embeddings = self._embeddings
            yield ImageRequest(
                number,
                seed=hash_seed(plan.seed, number),
                label=plan.classes[number % len(plan.classes)] if plan.classes else None,
                embedding=None if embeddings is None else embeddings[number % len(embeddings)],
                num_patches=plan.num_patches,
                global_codes=global_codes,
                patches=patches,
            )

    def _starts(self, numbers: range) -> Iterator[TokenRecord]:
        """The row that each image starts from. Consecutive images read a shard once."""
        assert self._start is not None and self._first_rows is not None
        num_rows = int(self._first_rows[-1])
        shard, rows, following = -1, iter(()), 0
        for number in numbers:
            wanted = number % num_rows
            at = int(np.searchsorted(self._first_rows, wanted, side="right")) - 1
            if at != shard or wanted < following:
                shard, rows, following = (
                    at,
                    self._start.rows(self._start.shards[at]),
                    int(self._first_rows[at]),
                )
            while True:
                row = next(rows)
                following += 1
                if following > wanted:
                    break
            yield row

    def _keep(self, row: TokenRecord) -> tuple[np.ndarray | None, np.ndarray]:
        assert self._plan.start is not None
        start, side = self._plan.start, self._grid_side
        at_row, at_column = np.divmod(np.arange(side * side), side)
        is_kept = (at_row >= start.rows[0]) & (at_row < start.rows[1])
        is_kept &= (at_column >= start.columns[0]) & (at_column < start.columns[1])
        return keep_part(row, is_kept, keep_globals=start.keep_globals)


def keep_part(
    image: HasTokens, is_kept: np.ndarray, *, keep_globals: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """What a request is given of an image: codes of globals (K,), or None, and of places (N,). Where `is_kept` (N,)
    the image stays as it is: what has no patch there gets none."""
    patches = np.where(is_kept, int(Place.ABSENT), int(Place.FREE))
    kept = is_kept[image.patch_positions]
    patches[image.patch_positions[kept]] = image.patch_codes[kept]
    return image.global_codes.astype(np.int64) if keep_globals else None, patches
