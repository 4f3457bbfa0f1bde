"""The one door to an image shard, whatever its format and wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, BinaryIO, cast

from tatok_pipe import storage
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet import read_parquet
from tatok_pipe.images.regroup import read_regrouped
from tatok_pipe.images.shards import DEFAULT_LIMITS, LastingShardError, ShardLimits, read_samples
from tatok_pipe.records import ImageSample, Quarantined

PARQUET_SUFFIX = ".parquet"
PART_BYTES = 16 << 20
NUM_PARALLEL = 8


@contextmanager
def open_samples(
    url: str,
    *,
    info: storage.SourceInfo,
    limits: ShardLimits = DEFAULT_LIMITS,
    regroup: bool = False,
    part_bytes: int = PART_BYTES,
    num_parallel: int = NUM_PARALLEL,
    notices: Notices | None = None,
    class_names: tuple[str, ...] = (),
    hasher: Any = None,
) -> Iterator[Iterator[ImageSample | Quarantined]]:
    """The samples of an image shard, in order: a Parquet file where the name ends in `.parquet`, else a tar.

    Entering starts to fetch in the background, at most `part_bytes * num_parallel` bytes ahead of what is
    parsed; iterating parses. `info` (from `file_info`) says which version of the file is meant: another one
    raises OSError. While iterating, a shard that cannot be read to its end raises ShardError, and where the
    files of a sample do not follow one another InterleavedShard: what came is then to be thrown away, and the
    shard opened again with `regroup=True`, which reads a tar twice and means nothing to Parquet. What a user ought
    to know of the shard goes to `notices`. A Parquet file whose classes have other names than `class_names`, where
    these are known, raises UnusableShard. A `hasher` (of hashlib) has had every byte of the file when the samples
    are at their end.
    """
    shard = storage.redact(url)
    if info.size_bytes > limits.max_shard_bytes:
        raise LastingShardError(
            shard,
            0,
            f"{info.size_bytes} bytes, more than max_shard_bytes={limits.max_shard_bytes}",
            "split the shard, or raise max_shard_bytes",
        )
    if url.partition("?")[0].lower().endswith(PARQUET_SUFFIX):
        if hasher is not None:  # what is asked for is not all of it, nor in order
            with storage.HashingReader(_open(url, info, part_bytes, num_parallel), hasher) as whole:
                whole.read_rest()
        with closing(storage.open_random_access(url, info=info, num_ahead=num_parallel)) as file:
            yield read_parquet(file, shard=shard, limits=limits, notices=notices, class_names=class_names)
        return
    with ExitStack() as streams:

        def open_stream() -> BinaryIO:
            return streams.enter_context(_open(url, info, part_bytes, num_parallel))

        first = open_stream()
        if hasher is not None:
            first = streams.enter_context(storage.HashingReader(first, hasher))
        if regroup:
            passes = iter([lambda: cast(BinaryIO, first), open_stream])
            samples = read_regrouped(lambda: next(passes)(), shard=shard, limits=limits, notices=notices)
        else:
            samples = read_samples(cast(BinaryIO, first), shard=shard, limits=limits, notices=notices)
        yield samples


def _open(url: str, info: storage.SourceInfo, part_bytes: int, num_parallel: int) -> BinaryIO:
    return storage.open_stream(url, part_bytes=part_bytes, num_parallel=num_parallel, info=info)
