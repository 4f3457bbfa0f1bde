"""What is *owed* of a token dataset: token shards that were counted once and cannot be found any more, though nobody
discarded them. They are remembered until a token shard of that name is there again, so that a loss is not forgotten by
counting afresh.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import compute

from tatok_pipe.tokens.format import ShardSource

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers


@dataclass(frozen=True)
class Owed:
    """A token shard that was counted, and is not there any more, or has other rows now."""

    name: str
    source: ShardSource
    num_rows: int
    content_digest: str  # of the rows that it had; empty once it was seen to be gone


def source_of(row: dict[str, Any]) -> ShardSource:
    """The image shard of a row of the index."""
    return ShardSource(*(row[f"source_{name}"] for name in ("url", "size_bytes", "etag", "sha256")))


def owed_from_json(value: dict[str, Any]) -> Owed:
    """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError for what is none."""
    return Owed(**{**value, "source": ShardSource(**value["source"])})


def owed_rows(rows: pa.Table, listing: pa.Table) -> list[Owed]:
    """Those of `rows` whose data file is not listed, or is another one by now."""
    place = pc.index_in(rows["name"], value_set=listing["name"])
    is_gone = place.is_null()
    listed = listing.select(["size_bytes", "version"]).take(place)
    is_other = pc.or_(
        pc.not_equal(rows["size_bytes"], listed["size_bytes"]),
        pc.not_equal(rows["version"], listed["version"]),
    )
    wanted = rows.filter(pc.or_kleene(is_gone, is_other.fill_null(True)))
    listed_names = set(listing["name"].to_pylist()) if wanted.num_rows else set()
    return [
        Owed(
            row["name"],
            source_of(row),
            row["num_rows"],
            row["content_digest"] if row["name"] in listed_names else "",
        )
        for row in wanted.to_pylist()
    ]


def settle(owed: Collection[Owed], present: Any, table: pa.Table | None = None) -> tuple[Owed, ...]:
    """Those of `owed` that still are, when the token shards with the names `present` are there.

    One that was gone and came back was made again. One that was never seen to be gone has to have the rows that it
    had, as far as `table` tells, unless its image shard is another one now.
    """
    if not owed:
        return ()
    names = set(present.to_pylist())
    rows = {}
    if table is not None:
        wanted = pa.array({each.name for each in owed}, pa.string())
        rows = {
            row["name"]: row for row in table.filter(pc.is_in(table["name"], value_set=wanted)).to_pylist()
        }
    left: dict[str, Owed] = {}
    for each in owed:
        row = rows.get(each.name)
        if each.name not in names:
            left[each.name] = replace(each, content_digest="")
        elif each.content_digest and (
            row is None or row["content_digest"] != each.content_digest and source_of(row) == each.source
        ):
            left.setdefault(each.name, each)
    return tuple(left[name] for name in sorted(left))
