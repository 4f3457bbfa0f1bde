"""What lies in a token dataset, from its footers alone: one pass, no token row is read.

Letters: N patches, S shards.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tatok_pipe import storage
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import Quarantined
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource, empty_statistics, read_quarantine, token_shard_name
from tatok_pipe.tokens.index import NUM_READERS, read_footer
from tatok_pipe.tokens.layout import DATA_DIRECTORY, SUFFIX, quarantine_url
from tatok_pipe.tokens.statistics import ShardStatistics


@dataclass(frozen=True)
class Shard:
    """One committed token shard."""

    name: str
    source: ShardSource
    num_images: int  # rows
    num_tokens: int
    num_quarantined: int
    quarantine_reasons: dict[str, int]  # error class -> samples
    size_bytes: int  # of the Parquet file
    kept_histogram: np.ndarray  # (N + 1,) uint32: images by number of kept patches


@dataclass(frozen=True)
class Inventory:
    """All shards with their merged statistics, and what the last finished run said of the others."""

    shards: list[Shard]  # by name
    statistics: ShardStatistics
    num_planned: int | None  # None where no run has finished
    missing: list[str]  # names of planned shards that are not there
    failed: dict[str, str] = field(default_factory=dict)  # image shard -> error

    @property
    def failed_names(self) -> list[str]:
        """The names of the token shards that the failed image shards would have made."""
        return [token_shard_name(url) for url in self.failed]

    @property
    def token_bytes(self) -> int:
        """Size of all Parquet files of tokens."""
        return sum(shard.size_bytes for shard in self.shards)


def take_inventory(dataset: TokenDataset) -> Inventory:
    """Read every footer. Raises RefusedError for a shard that was made with another spec than its dataset's,
    UserError for a file that is no token shard."""
    sizes = storage.list_files(storage.join(dataset.url, DATA_DIRECTORY))
    statistics = empty_statistics(dataset.spec)
    shards = []
    with ThreadPoolExecutor(NUM_READERS, "footers") as pool:
        footers = map_ahead(
            pool,
            lambda name: read_footer(dataset.url, name, dataset.spec),
            dataset.shards,
            max_items=2 * NUM_READERS,
        )
        for name, footer in zip(dataset.shards, footers, strict=True):
            statistics.merge(footer.statistics)
            shards.append(
                Shard(
                    name=name,
                    source=footer.source,
                    num_images=footer.num_rows,
                    num_tokens=footer.statistics.num_tokens,
                    num_quarantined=footer.statistics.num_quarantined,
                    quarantine_reasons=footer.statistics.quarantine_reasons,
                    size_bytes=sizes.get(name + SUFFIX, 0),
                    kept_histogram=footer.statistics.kept_histogram.astype(np.uint32),
                )
            )
    summary = dataset.summary
    if summary is None:
        return Inventory(shards, statistics, num_planned=None, missing=[])
    # The summary is as old as the last finished run; a run after it may have brought some of these shards.
    present = set(dataset.shards)
    return Inventory(
        shards,
        statistics,
        num_planned=summary["num_shards_planned"],
        missing=[name for name in summary["missing_shards"] if name not in present],
        failed={
            url: error
            for url, error in summary["failed_shards"].items()
            if token_shard_name(url) not in present
        },
    )


def find_examples(dataset: TokenDataset, inventory: Inventory) -> dict[str, Quarantined]:
    """For each reason of quarantine its first sample, reading one file a reason at most."""
    examples: dict[str, Quarantined] = {}
    for shard in inventory.shards:
        if shard.quarantine_reasons.keys() <= examples.keys():
            continue
        for row in read_quarantine(quarantine_url(dataset.url, shard.name)):
            examples.setdefault(row.error, row)
    return examples
