"""What a run has to do: planned shards minus committed ones, and what to do with image shards that changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from tatok_pipe import storage
from tatok_pipe.commands.tokenize_corpus.options import ON_SOURCE_CHANGE, Only, OnMoved, OnSourceChange
from tatok_pipe.errors import UserError
from tatok_pipe.images.source import hash_shard
from tatok_pipe.parallel import map_ahead
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.commit import show_source
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.format import ShardSource, token_shard_name
from tatok_pipe.tokens.index import Progress, forget_shards, refresh_index
from tatok_pipe.tokens.index_file import Index
from tatok_pipe.tokens.index_file import save_index as _save_index
from tatok_pipe.tokens.layout import QUARANTINE_DIRECTORY, SUFFIX, data_url
from tatok_pipe.tokens.owed import source_of
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

_NUM_SHOWN = 3
_SOURCE = ("url", "size_bytes", "etag", "sha256", "mtime_ns")
_NUM_REMOVERS = 32
_NUM_HASHERS = 4
# Within the tick of a file system's clock two contents have one time, so the time of a fresh file is no hint.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class SourceChange:
    """An image shard that is not what its token shard was made from."""

    name: str  # of the token shard
    shard: ShardFile  # as it is now
    recorded: ShardSource
    sha256: str = ""  # as it is now, where it had to be hashed

    def __str__(self) -> str:
        now = ShardSource("", self.shard.size_bytes or self.recorded.size_bytes, self.shard.etag, self.sha256)
        return f"{storage.redact(self.shard.url)} (was {show_source(self.recorded)}, is {show_source(now)})"


@dataclass(frozen=True)
class CorpusPlan:
    """What is there, and what is to be done."""

    names: list[str]  # token shard names of all planned shards, in input order
    todo: list[ShardFile]  # in input order
    changed: list[SourceChange]  # in `todo` where they are to be tokenized again
    index: Index  # of the committed shards, also those of other input
    on_source_change: OnSourceChange = "error"
    moved: dict[str, str] = field(default_factory=dict)  # image shard -> URL under which its tokens were made
    broken: dict[str, str] = field(default_factory=dict)  # planned token shard whose file is none -> why
    began_ns: int = 0  # when the times of image shards in `todo` were known
    redone: list[str] = field(
        default_factory=list
    )  # token shards of `todo` that are there until they are replaced
    num_left: int = 0  # planned shards that are neither there nor in `todo`

    @property
    def num_planned(self) -> int:
        return len(self.names)

    @property
    def num_done(self) -> int:
        """Planned shards that stay as they are."""
        return len(self.names) - len(self.todo) - len(self.broken) - self.num_left

    @property
    def num_other(self) -> int:
        """Committed shards that are not planned."""
        num_redone = len(self.changed) if self.on_source_change == "retokenize" else 0
        return len(self.index) - self.num_done - num_redone - len(self.redone)

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
    on_moved: OnMoved = "error",
    only: Only = "all",
    on_progress: Progress | None = None,
    save_index: bool = True,
) -> CorpusPlan:
    """Planned minus committed, from one listing of data/, `_index.parquet` and the footers that it lacks.

    A shard changed where its size, or its ETag where both are known, is not the one in its token shard's
    footer. A local one, which has no ETag, is hashed where its time is not the one in `_index.parquet`, and is as it
    was where the hash is. "error" then raises UserError; "report" and "ignore" keep the tokens; "retokenize" puts it
    into `todo`, and `discard_committed` has to come before it is tokenized.

    A shard to do is moved where one that is not planned was tokenized with its name, size and content. "error" then
    raises UserError; "add" does it again; "map" takes the tokens that are there for it. Data files that are no token
    shards are named in the answer, and not done again: they are in the way.

    With `only` "quarantined" those are to do that have a quarantine file, whether their image shards changed or not,
    and no others. Their token shards stay until they are replaced.

    Nothing is written but the index, and that only
    with `save_index`. Raises UserError where two shards would make the same token shard, RefusedError for a
    token shard that was made with another spec.
    """
    if on_source_change not in ON_SOURCE_CHANGE:
        raise ValueError(f"on_source_change={on_source_change!r}: expected one of {ON_SOURCE_CHANGE}")
    index = refresh_index(output_url, spec, on_progress=on_progress, save=save_index, with_broken=True)
    names = [token_shard_name(shard.url) for shard in shards]
    place = pc.index_in(_check_unique(names, shards), value_set=index.table["name"])
    is_there = pc.is_valid(place).to_numpy(zero_copy_only=False)
    is_again = _has_quarantine(output_url, names) if only == "quarantined" else np.zeros(len(names), bool)
    is_done = is_there & ~is_again
    done = np.flatnonzero(is_done)
    place = place.filter(pa.array(is_done))
    recorded = index.table.select([f"source_{name}" for name in _SOURCE]).take(place)
    sources = [shards[each] for each in done.tolist()]
    _check_urls(sources, recorded["source_url"], [names[each] for each in done.tolist()])
    has_changed = _has_changed(sources, recorded)
    unsure = np.flatnonzero(~has_changed & _is_unsure(sources, recorded))
    began_ns = time.time_ns()
    hashes = _hash_all([sources[row] for row in unsure.tolist()])
    same = np.array(hashes, object) == recorded["source_sha256"].take(unsure).to_numpy()
    has_changed[unsure] = ~same
    index = _with_times(index, place.take(unsure[same]), [sources[row] for row in unsure[same]], began_ns)
    if save_index and same.any():
        _save_index(output_url, spec, index)
    rows, found = np.flatnonzero(has_changed), dict(zip(unsure.tolist(), hashes, strict=True))
    changed = [
        SourceChange(names[done[row]], sources[row], source_of(was), found.get(row, ""))
        for row, was in zip(rows.tolist(), recorded.take(rows).to_pylist(), strict=True)
    ]
    if changed and on_source_change == "error":
        shown = "; ".join(str(each) for each in changed[:_NUM_SHOWN])
        more = f"; and {len(changed) - _NUM_SHOWN} more" if len(changed) > _NUM_SHOWN else ""
        raise UserError(
            f"{len(changed)} of {len(done)} image shards changed since they were tokenized: {shown}{more}. "
            "Give input.on_source_change=retokenize to make their tokens anew, ignore to keep the tokens as they are, "
            "report to do the new shards all the same, or another output.url"
        )
    if on_source_change == "retokenize":
        is_done[done[rows]] = False
    broken = {name: index.broken[name] for name in names if name in index.broken}
    is_done |= np.array([name in broken for name in names], bool)
    num_left = 0
    if only == "quarantined":
        num_left = int((~is_done & ~is_again).sum())
        is_done |= ~is_again
    moved = (
        {} if only == "quarantined" else find_moved(shards, names, np.flatnonzero(~is_done).tolist(), index)
    )
    if moved and on_moved == "error":
        raise _moved_error(shards, moved, int((~is_done).sum()))
    if on_moved == "map":
        for number, row in moved.items():
            names[number] = row["name"]
            is_done[number] = True
    urls = {shards[number].url: row["source_url"] for number, row in moved.items()}
    todo = np.flatnonzero(~is_done).tolist()
    redone = [names[each] for each in todo if is_there[each] and is_again[each]]
    return CorpusPlan(
        names, [shards[each] for each in todo], changed, index, on_source_change, urls, broken, began_ns, redone,
        num_left,
    )  # fmt: skip


def _has_quarantine(output_url: str, names: Sequence[str]) -> np.ndarray:
    """(len(names),) bool: which token shards have a quarantine file."""
    files = storage.list_files(storage.join(output_url, QUARANTINE_DIRECTORY))
    return np.array([name + SUFFIX in files for name in names], bool)


def remember_times(output_url: str, spec: TokenSpec, plan: CorpusPlan) -> None:
    """Put the times of image shards that were tokenized since `plan` into `_index.parquet`, so that the next run need
    not hash them. A shard that changed between the plan and its reading has another time then, and is hashed."""
    local = [shard for shard in plan.todo if shard.mtime_ns and not shard.etag]
    if not local:
        return
    index = refresh_index(output_url, spec, with_broken=True)
    names = pa.array([token_shard_name(shard.url) for shard in local])
    place = pc.index_in(names, value_set=index.table["name"])
    done = [shard for shard, row in zip(local, place.to_pylist(), strict=True) if row is not None]
    _save_index(output_url, spec, _with_times(index, place.drop_null(), done, plan.began_ns))


def find_moved(
    shards: Sequence[ShardFile], names: Sequence[str], numbers: Sequence[int], index: Index
) -> dict[int, dict[str, Any]]:
    """Of the shards with these numbers, those that were tokenized under another path: number -> row of the index.

    The file name, the size and the content agree, by ETag or, on local disk, by time or hash. Shards that are planned
    themselves are nobody else's.
    """
    if not numbers or not len(index):
        return {}
    table = index.table.filter(
        pc.invert(pc.is_in(index.table["name"], value_set=pa.array(names, pa.string())))
    )
    by_look: dict[tuple[str, int], list[int]] = {}
    for at, (name, size) in enumerate(
        zip(table["name"].to_pylist(), table["source_size_bytes"].to_pylist(), strict=True)
    ):
        by_look.setdefault((name.rpartition("-")[0], size), []).append(at)
    found: dict[int, dict[str, Any]] = {}
    taken: set[str] = set()
    for number in numbers:
        shard, sha256 = shards[number], ""
        for at in by_look.get((names[number].rpartition("-")[0], shard.size_bytes or -1), ()):
            row = table.slice(at, 1).to_pylist()[0]
            if row["name"] in taken:
                continue
            is_same = bool(shard.etag) and shard.etag == row["source_etag"]
            if not is_same and row["source_sha256"] and shard.mtime_ns:
                sha256 = sha256 or hash_shard(shard.url)
                is_same = sha256 == row["source_sha256"]
            if is_same:
                found[number] = row
                taken.add(row["name"])
                break
    return found


def _moved_error(shards: Sequence[ShardFile], moved: dict[int, dict[str, Any]], num_todo: int) -> UserError:
    number, row = next(iter(moved.items()))
    return UserError(
        f"{len(moved)} of {num_todo} image shards to do have the name and content of ones that were tokenized under "
        f"another path: {storage.redact(shards[number].url)} as {storage.redact(row['source_url'])}. Give "
        "input.on_moved=map to take the tokens that are there for theirs, add to tokenize them a second time, or "
        "another output.url"
    )


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


def _is_unsure(sources: Sequence[ShardFile], recorded: pa.Table) -> np.ndarray:
    """(len(sources),) bool: local image shards whose content alone can tell, because their time does not."""
    times = np.fromiter((shard.mtime_ns for shard in sources), np.int64, len(sources))
    is_hashed = pc.not_equal(recorded["source_sha256"], "").to_numpy()
    return (times != 0) & is_hashed & (times != recorded["source_mtime_ns"].to_numpy())


def _hash_all(shards: Sequence[ShardFile]) -> list[str]:
    """SHA-256 of each. Raises OSError where one cannot be read."""
    if not shards:
        return []
    size = sum(shard.size_bytes or 0 for shard in shards)
    logger.info(
        "%d image shards have another time than when they were last looked at; reading them again (%.1f GB)",
        len(shards), size / 1e9,
    )  # fmt: skip

    def hash_one(shard: ShardFile) -> str:
        return hash_shard(shard.url)

    with ThreadPoolExecutor(_NUM_HASHERS, "hash") as pool:
        return list(map_ahead(pool, hash_one, shards, max_items=2 * _NUM_HASHERS))


def _with_times(index: Index, rows: pa.Array, sources: Sequence[ShardFile], now_ns: int) -> Index:
    """The index with the times of image shards that were found to be as they were; `rows` are theirs."""
    name = "source_mtime_ns"
    times = index.table[name].to_numpy().copy()
    for row, shard in zip(rows.to_pylist(), sources, strict=True):
        times[row] = shard.mtime_ns if shard.mtime_ns < now_ns - _SETTLED_NS else 0
    place = index.table.schema.get_field_index(name)
    return replace(
        index, table=index.table.set_column(place, index.table.schema.field(name), pa.array(times))
    )
