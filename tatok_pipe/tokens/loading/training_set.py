"""A token dataset as a training finds it at its start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.loading.windows import ShardRows
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics
from tatok_pipe.tokens.summary import merge_statistics
from tatok_pipe.tokens.versions import Version, find_current, find_version


@dataclass(frozen=True)
class TrainingSet:
    """To be read once and given to all ranks, so that shards which are committed meanwhile are in all of them or none.

    An element is a token, or the condition that stands before those of an image.
    """

    url: str
    spec: TokenSpec
    shards: list[ShardRows]  # by name
    statistics: ShardStatistics
    version: Version  # of the dataset

    @property
    def num_sequences(self) -> int:
        return self.statistics.num_images

    @property
    def num_elements(self) -> int:
        return self.statistics.num_tokens + self.statistics.num_images

    @property
    def longest_elements(self) -> int:
        """Of the longest sequence that there is."""
        kept = int(np.flatnonzero(self.statistics.kept_histogram).max())
        return 1 + self.spec.num_globals + kept

    @property
    def unigram_nats(self) -> dict[str, float]:
        """Entropies of single codes, "global" and "patch", in nats: what a model reaches that knows nothing but how
        frequent each code is."""
        return {
            "global": entropy_nats(self.statistics.global_code_counts),
            "patch": entropy_nats(self.statistics.patch_code_counts),
        }


def read_training_set(url: str, *, version: int | None = None) -> TrainingSet:
    """The committed shards of the token dataset at `url` as they are now, or those of an earlier `version`.

    Nothing is written. Raises UserError where there is no dataset or version, or nothing in it; RefusedError where a
    shard was made with other settings than the dataset.
    """
    spec, _ = read_dataset_file(url)
    index = refresh_index(url, spec, save=False)
    chosen = find_current(url, index) if version is None else find_version(url, version, index)
    rows = index.table["num_rows"].to_pylist()
    shards = [
        ShardRows(name, num_rows)
        for name, num_rows in zip(index.names, rows, strict=True)
        if name in chosen.shards
    ]
    statistics = index.statistics
    if len(shards) < len(index):
        statistics = merge_statistics(url, [shard.name for shard in shards], spec)
    if not statistics.num_images:
        raise UserError(
            f"{storage.redact(url)}: {len(shards)} committed shards with no rows; there is nothing to train on, "
            "run tokenize_corpus first"
        )
    return TrainingSet(url, spec, shards, statistics, chosen)


def entropy_nats(counts: np.ndarray) -> float:
    """Of a code that comes as often as `counts` say, (V,); any scale."""
    shares = counts[counts > 0] / (counts.sum() or 1)
    return float(-(shares * np.log(shares)).sum())
