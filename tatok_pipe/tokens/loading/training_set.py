"""A token dataset as a training finds it at its start."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.columns import to_numpy
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.parquet_groups import parquet_errors
from tatok_pipe.tokens.loading.windows import ShardRows
from tatok_pipe.tokens.row_condition import read_condition
from tatok_pipe.tokens.shard_file import open_shard
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics
from tatok_pipe.tokens.summary import merge_statistics
from tatok_pipe.tokens.versions import Version, find_current, find_version

_NUM_THREADS = 8
_ADVICE = "`python -m tatok_pipe.inspect_tokens --verify` tells what is wrong with the dataset"


@dataclass(frozen=True)
class Chosen:
    """How many rows a condition is true of, and their tokens."""

    num_rows: int
    num_tokens: int


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
    where: str = ""  # the condition on the rows that are trained on; empty: all of them
    chosen: Chosen | None = None  # of the rows, where not all are trained on

    @property
    def num_sequences(self) -> int:
        return self.statistics.num_images if self.chosen is None else self.chosen.num_rows

    @property
    def num_elements(self) -> int:
        num_tokens = self.statistics.num_tokens if self.chosen is None else self.chosen.num_tokens
        return num_tokens + self.num_sequences

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


def read_training_set(
    url: str, *, version: int | None = None, where: str = "", where_option: str = "where"
) -> TrainingSet:
    """The committed shards of the token dataset at `url` as they are now, or those of an earlier `version`. `where`,
    the condition on rows that will be left out there, which the user calls `where_option`, is looked at, and no row is
    read for it (`count_chosen`).

    Nothing is written. Raises UserError where there is no dataset or version, or nothing in it; RefusedError where a
    shard was made with other settings than the dataset.
    """
    spec, _ = read_dataset_file(url)
    index = refresh_index(url, spec, save=False)
    chosen = find_current(url, index) if version is None else find_version(url, version, index)
    condition = read_condition(url, spec, where, option=where_option)
    if condition is not None and condition.joined_digest not in ("", chosen.columns):
        raise UserError(
            f"{where_option}={where}: {storage.redact(url)} has other joined columns now than {chosen} had; give the "
            "version that is there now, or a condition on other columns"
        )
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
    return TrainingSet(url, spec, shards, statistics, chosen, where)


def count_chosen(dataset: TrainingSet, *, where_option: str = "where") -> TrainingSet:
    """The dataset with the rows counted that its condition is true of; as it is where it has none. Reads the columns
    that it names of all shards. `where_option` is what the user calls it. Raises UserError where it is true of no row,
    or a shard cannot be read."""
    condition = read_condition(dataset.url, dataset.spec, dataset.where)
    if condition is None:
        return dataset

    def read(shard: ShardRows) -> Chosen:
        place = data_url(dataset.url, shard.name)
        with parquet_errors(place, _ADVICE), open_shard(place) as file:
            table = file.read(range(file.num_row_groups), [*condition.columns, "num_tokens"])
        tokens = to_numpy(table["num_tokens"].combine_chunks())[condition.rows(shard.name, table)]
        return Chosen(len(tokens), int(tokens.sum()))

    with ThreadPoolExecutor(_NUM_THREADS, "token-where") as pool:
        counts = list(map_ahead(pool, read, dataset.shards, max_items=_NUM_THREADS))
    chosen = Chosen(sum(each.num_rows for each in counts), sum(each.num_tokens for each in counts))
    if not chosen.num_rows:
        raise UserError(
            f"{where_option}={dataset.where}: is true of none of the {dataset.num_sequences} rows of "
            f"{storage.redact(dataset.url)}; give another condition"
        )
    return dataclasses.replace(dataset, chosen=chosen)


def entropy_nats(counts: np.ndarray) -> float:
    """Of a code that comes as often as `counts` say, (V,); any scale."""
    shares = counts[counts > 0] / (counts.sum() or 1)
    return float(-(shares * np.log(shares)).sum())
