"""What a run has to do: planned shards minus committed ones, and what to do with image shards that changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.dataset import read_dataset_file, show_source
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.index import Index, Progress, forget_shards, refresh_index
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.spec import TokenSpec

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

OnSourceChange = Literal["error", "retokenize", "ignore"]
ON_SOURCE_CHANGE: tuple[OnSourceChange, ...] = ("error", "retokenize", "ignore")
_NUM_SHOWN = 3
_NUM_REMOVERS = 32


@dataclass(frozen=True, slots=True)
class SourceChange:
    """An image shard that is not what its token shard was made from."""

    name: str  # of the token shard
    shard: ShardFile  # as it is now
    recorded_size_bytes: int
    recorded_etag: str

    def __str__(self) -> str:
        return (
            f"{storage.redact(self.shard.url)} (was {show_source(self.recorded_size_bytes, self.recorded_etag)}, "
            f"is {show_source(self.shard.size_bytes, self.shard.etag)})"
        )


@dataclass(frozen=True)
class CorpusPlan:
    """What is there, and what is to be done."""

    names: list[str]  # token shard names of all planned shards, in input order
    todo: list[ShardFile]  # in input order
    changed: list[SourceChange]  # in `todo` where they are to be tokenized again
    index: Index  # of the committed shards, also those of other input
    on_source_change: OnSourceChange = "error"

    @property
    def num_planned(self) -> int:
        return len(self.names)

    @property
    def num_done(self) -> int:
        """Planned shards that stay as they are."""
        return len(self.names) - len(self.todo)

    @property
    def num_other(self) -> int:
        """Committed shards that are not planned."""
        num_redone = len(self.changed) if self.on_source_change == "retokenize" else 0
        return len(self.index) - self.num_done - num_redone

    @property
    def bytes_to_read(self) -> int:
        """Size of the image shards to do, as far as it is known."""
        return sum(shard.size_bytes or 0 for shard in self.todo)

    @property
    def num_unknown_sizes(self) -> int:
        """Shards to do whose server does not tell their size."""
        return sum(shard.size_bytes is None for shard in self.todo)


def make_plan(
    output_url: str,
    spec: TokenSpec,
    shards: Sequence[ShardFile],
    *,
    on_source_change: OnSourceChange = "error",
    on_progress: Progress | None = None,
    save_index: bool = True,
) -> CorpusPlan:
    """Planned minus committed, from one listing of data/, `_index.parquet` and the footers that it lacks.

    A shard changed where its size, or its ETag where both are known, is not the one in its token shard's
    footer. "error" then raises UserError; "ignore" keeps the tokens; "retokenize" puts it into `todo`, and
    `discard_committed` has to come before it is tokenized. Nothing is written but the index, and that only
    with `save_index`. Raises UserError where two shards would make the same token shard, RefusedError for a
    token shard that was made with another spec.
    """
    if on_source_change not in ON_SOURCE_CHANGE:
        raise ValueError(f"on_source_change={on_source_change!r}: expected one of {ON_SOURCE_CHANGE}")
    index = refresh_index(output_url, spec, on_progress=on_progress, save=save_index)
    names = [token_shard_name(shard.url) for shard in shards]
    place = pc.index_in(_check_unique(names, shards), value_set=index.table["name"])
    is_done = pc.is_valid(place).to_numpy(zero_copy_only=False)
    done = np.flatnonzero(is_done)
    recorded = index.table.select(["source_url", "source_size_bytes", "source_etag"]).take(place.drop_null())
    del place
    sources = [shards[each] for each in done.tolist()]
    _check_urls(sources, recorded["source_url"], [names[each] for each in done.tolist()])
    rows = np.flatnonzero(_has_changed(sources, recorded))
    changed = [
        SourceChange(names[each], shards[each], was["source_size_bytes"], was["source_etag"])
        for each, was in zip(done[rows].tolist(), recorded.take(rows).to_pylist(), strict=True)
    ]
    if changed and on_source_change == "error":
        shown = "; ".join(str(each) for each in changed[:_NUM_SHOWN])
        more = f"; and {len(changed) - _NUM_SHOWN} more" if len(changed) > _NUM_SHOWN else ""
        raise UserError(
            f"{len(changed)} of {len(done)} image shards changed since they were tokenized: {shown}{more}. "
            "Give input.on_source_change=retokenize to make their tokens anew, ignore to keep the tokens as they are, "
            "or another output.url"
        )
    if on_source_change == "retokenize":
        is_done[done[rows]] = False
    todo = [shards[each] for each in np.flatnonzero(~is_done).tolist()]
    return CorpusPlan(names, todo, changed, index, on_source_change)


def discard_committed(output_url: str, names: Collection[str]) -> None:
    """Undo the commit of token shards, so that they can be made anew; what is not there is no error.

    Only data files go, so that a crash at any point leaves either a whole token shard or none: a quarantine
    file without its data file means nothing, and the next commit replaces or removes it. (Removing it here
    could hit the one of another job that has just committed the shard anew.)
    """
    if not names:
        return
    spec, _ = read_dataset_file(output_url)
    forget_shards(output_url, spec, names)
    with ThreadPoolExecutor(_NUM_REMOVERS, "discard") as pool:
        urls = (data_url(output_url, name) for name in names)
        for _ in map_ahead(pool, storage.remove, urls, max_items=4 * _NUM_REMOVERS):
            pass


def _check_unique(names: list[str], shards: Sequence[ShardFile]) -> pa.Array:
    array = pa.array(names, pa.string())
    if pc.count_distinct(array).as_py() != len(names):
        seen: dict[str, ShardFile] = {}
        for name, shard in zip(names, shards, strict=True):
            other = seen.setdefault(name, shard)
            if other is not shard:
                raise _same_name(name, other.url, shard.url)
    return array


def _same_name(name: str, first: str, second: str) -> UserError:
    if storage.canonical_url(first) == storage.canonical_url(second):
        return UserError(f"{storage.redact(first)}: given twice; an image shard makes one token shard")
    return UserError(
        f"{storage.redact(first)} and {storage.redact(second)} would make the same token shard {name}, because "
        "their hashes agree; rename one of them"
    )


def _check_urls(sources: Sequence[ShardFile], recorded: pa.ChunkedArray, names: Sequence[str]) -> None:
    """Raise UserError where a token shard was made from another image shard than the one of its name."""
    now = pa.array((storage.canonical_url(shard.url) for shard in sources), pa.string(), size=len(sources))
    for row in np.flatnonzero(pc.not_equal(now, recorded).to_numpy()).tolist():
        was = recorded[row].as_py()
        if storage.canonical_url(was) != storage.canonical_url(sources[row].url):
            raise _same_name(names[row], was, sources[row].url)


def _has_changed(sources: Sequence[ShardFile], recorded: pa.Table) -> np.ndarray:
    """(len(sources),) bool: whether what a store says now is not what was recorded, both in one order."""
    sizes = (-1 if shard.size_bytes is None else shard.size_bytes for shard in sources)
    size_now = np.fromiter(sizes, np.int64, len(sources))
    etag_now = pa.array((shard.etag for shard in sources), pa.string(), size=len(sources))
    has_size_changed = (size_now >= 0) & (size_now != recorded["source_size_bytes"].to_numpy())
    are_etags_known = pc.and_(pc.not_equal(etag_now, ""), pc.not_equal(recorded["source_etag"], ""))
    has_etag_changed = pc.and_(are_etags_known, pc.not_equal(etag_now, recorded["source_etag"]))
    return has_size_changed | has_etag_changed.to_numpy()
