"""`_summary.json`: what a run leaves behind on all committed shards, and what was missing then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tatok_pipe import storage
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.format import (
    empty_statistics,
    token_shard_name,
)
from tatok_pipe.tokens.index import NUM_READERS, read_footer, refresh_index
from tatok_pipe.tokens.layout import (
    SUMMARY_FILE,
    to_json_file,
)
from tatok_pipe.tokens.owed import Owed, owed_from_json
from tatok_pipe.tokens.spec import FORMAT_VERSION, TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics


def write_summary(
    url: str, *, planned: Sequence[str], failed: Mapping[str, str], run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `_summary.json` on all committed shards, and return its content.

    `planned` are the names of the shards that the run was to have at its end, `failed` maps image shards to
    their error, `run` holds figures of the run itself (JSON types: seconds, throughput). Only the footers that
    `_index.parquet` lacks are read; the index is brought up to date on the way. Files that are no token shards count
    as missing. What was counted once and is gone is kept as `lost_shards`, with what it was made from.
    """
    spec, _ = read_dataset_file(url)
    index = refresh_index(url, spec, with_broken=True)
    present = {*index.names, *index.broken}
    lost = {each.name: each for each in (*read_lost(url), *index.owed) if each.name not in present}
    summary = {
        "format": FORMAT_VERSION,
        "tokenizer_fingerprint": spec.tokenizer_fingerprint,
        "num_shards_planned": len(planned),
        "num_shards_committed": len(index),
        "missing_shards": sorted(set(planned).difference(index.names)),
        "lost_shards": [dataclasses.asdict(lost[name]) for name in sorted(lost)],
        "failed_shards": dict(sorted(failed.items())),
        "figures": index.statistics.to_summary(),
        "statistics": index.statistics.to_json(),
        "run": dict(run or {}),
    }
    storage.publish_bytes(to_json_file(summary), storage.join(url, SUMMARY_FILE), exclusive=False)
    return summary


def read_lost(url: str) -> list[Owed]:
    """What `_summary.json` tells of token shards that were gone when it was written; nothing where it is of no use."""
    try:
        found = json.loads(storage.read_bytes(storage.join(url, SUMMARY_FILE)))
        return [owed_from_json(each) for each in found["lost_shards"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def tell_unfinished(url: str, names: Collection[str], *, with_failed: bool = True) -> str:
    """`TokenDataset.unfinished` of a dataset of which the shards with these names are committed. Without `with_failed`
    a run is finished that could not do some shards, and said so."""
    try:
        summary = json.loads(storage.read_bytes(storage.join(url, SUMMARY_FILE)))
        failed = () if with_failed else map(token_shard_name, summary["failed_shards"])
        num_missing = len(set(summary["missing_shards"]).difference(names, failed))
        num_planned = summary["num_shards_planned"]
    except FileNotFoundError:
        return f"the run that makes it has not come to its end (no {SUMMARY_FILE})"
    except (ValueError, KeyError, TypeError):
        return ""  # which inspect_tokens --verify tells
    return f"{num_missing} of {num_planned} shards that its run planned are missing" if num_missing else ""


def merge_statistics(url: str, names: Sequence[str], spec: TokenSpec) -> ShardStatistics:
    """The statistics of the named shards together. Raises RefusedError for a shard made with another spec."""
    total = empty_statistics(spec)
    with ThreadPoolExecutor(NUM_READERS, "footers") as pool:
        footers = map_ahead(pool, lambda name: read_footer(url, name, spec), names, max_items=2 * NUM_READERS)
        for footer in footers:
            total.merge(footer.statistics)
    return total
