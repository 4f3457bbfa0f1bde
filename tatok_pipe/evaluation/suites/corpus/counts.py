"""What is counted of a token dataset, shard by shard, and adds up exactly.

Letters: B images, V codes, G groups of images.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tatok_pipe.evaluation.suites.corpus.drift import NUM_GROUPS
from tatok_pipe.tokens.columns import list_lengths, to_numpy
from tatok_pipe.tokens.format import empty_statistics
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics

COLUMNS = ("key", "global_codes", "patch_codes", "entropy_total", "entropy_dropped", "mutual_information")


@dataclass
class Counts:
    """Of one dataset. Codes are also counted by group: the images of a group are the same in every dataset, and all
    crops of an image are in one, since they are alike."""

    spec: TokenSpec
    statistics: ShardStatistics
    global_groups: np.ndarray  # (G, V_g) int64
    patch_groups: np.ndarray  # (G, V_p) int64
    num_shards: int = 0

    @classmethod
    def empty(cls, spec: TokenSpec) -> Counts:
        global_groups, patch_groups = (
            np.zeros((NUM_GROUPS, vocab), np.int64) for vocab in (spec.global_vocab, spec.patch_vocab)
        )
        return cls(spec, empty_statistics(spec), global_groups, patch_groups)

    def update(self, batch: pa.RecordBatch, *, seed: int) -> None:
        """Count rows, in COLUMNS. `seed` decides which image is in which group."""
        self.statistics.update_from_table(pa.Table.from_batches([batch]))
        groups = np.array([_group(key, seed) for key in batch.column("key").to_pylist()], np.int64)
        global_codes, patch_codes = batch.column("global_codes"), batch.column("patch_codes")
        _count(self.global_groups, np.repeat(groups, self.spec.num_globals), global_codes)
        _count(self.patch_groups, np.repeat(groups, list_lengths(patch_codes)), patch_codes)

    def merge(self, other: Counts) -> None:
        """Add `other`, of the same spec."""
        self.statistics.merge(other.statistics)
        self.global_groups += other.global_groups
        self.patch_groups += other.patch_groups
        self.num_shards += other.num_shards

    def to_row(self) -> dict[str, Any]:
        """As columns of text and bytes, small where codes are rare; `from_row` is the inverse."""
        return {
            "spec": json.dumps(self.spec.to_json(), sort_keys=True),
            "statistics": json.dumps(self.statistics.to_json(), sort_keys=True),
            "global_groups": zlib.compress(self.global_groups.astype("<i8").tobytes()),
            "patch_groups": zlib.compress(self.patch_groups.astype("<i8").tobytes()),
            "num_shards": self.num_shards,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Counts:
        groups = [
            np.frombuffer(zlib.decompress(row[name]), "<i8").reshape(NUM_GROUPS, -1).astype(np.int64)
            for name in ("global_groups", "patch_groups")
        ]
        return cls(
            TokenSpec.from_json(json.loads(row["spec"])),
            ShardStatistics.from_json(json.loads(row["statistics"])),
            *groups,
            num_shards=row["num_shards"],
        )


def _group(key: str, seed: int) -> int:
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=1).digest()[0] % NUM_GROUPS


def _count(groups: np.ndarray, group_of: np.ndarray, codes: pa.Array) -> None:
    """Add codes in lists, each in the group in `group_of`, to `groups` (G, V)."""
    places = group_of * groups.shape[1] + to_numpy(codes.flatten()).astype(np.int64)
    groups += np.bincount(places, minlength=groups.size).reshape(groups.shape)
