"""The one door to an image shard, whatever its format and wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

from tatok_pipe import storage
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.loose.image_list import read_part, show_path
from tatok_pipe.images.loose.inner_tars import class_of_tar, name_within, open_inner_tar
from tatok_pipe.images.loose.part_reader import (
    hash_head,
    hash_part,
    number_of_class,
    part_info,
    read_part_samples,
)
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import LastingShardError
from tatok_pipe.images.shard_formats import reader_of
from tatok_pipe.images.webdataset.compressed import Decompressed, is_compressed_tar
from tatok_pipe.images.webdataset.regroup import read_regrouped
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample, Quarantined

PART_BYTES = 16 << 20
NUM_PARALLEL = 8


def shard_info(url: str) -> storage.SourceInfo:
    """Which version of an image shard, a file or a part of a folder or manifest, is there now. Raises as
    `storage.file_info`."""
    part = storage.parse_part(url)
    return storage.file_info(url) if part is None else part_info(part)


def hash_shard(url: str) -> str:
    """SHA-256 of an image shard as it is now, 64 hex digits: what the `hasher` of `open_samples` would have."""
    part = storage.parse_part(url)
    return storage.hash_file(url, info=storage.file_info(url)) if part is None else hash_part(part)


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
    """The samples of an image shard, in order: a part of a folder or manifest, or a tar within a tar, what the end of
    its name says (`shard_formats`), else a tar, compressed where its name says so.

    Entering starts to fetch in the background, at most `part_bytes * num_parallel` bytes ahead of what is
    parsed; iterating parses. `info` (from `shard_info`) says which version of the file is meant: another one
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
    notices = Notices() if notices is None else notices
    part = storage.parse_part(url)
    read = reader_of(url) if part is None else None
    if read is not None:
        if hasher is not None:  # what is asked for is not all of it, nor in order
            with storage.HashingReader(_open(url, info, part_bytes, num_parallel), hasher) as whole:
                whole.read_rest()
        with closing(storage.open_random_access(url, info=info, num_ahead=num_parallel)) as file:
            yield read(file, shard=shard, limits=limits, notices=notices, class_names=class_names)
        return
    if part is None:
        tar = _Tar(url, lambda: _open(url, info, part_bytes, num_parallel))
        with tar.samples(shard, limits, notices, regroup, hasher) as samples:
            yield samples
        return
    if (found := shard_info(url)) != info:
        raise OSError(f"{shard}: changed before it was read: {info} before, {found} after")
    content = read_part(part)
    inner, classes = content.files[0], content.classes
    if inner.offset is None:
        yield read_part_samples(
            part,
            content,
            limits=limits,
            notices=notices,
            class_names=class_names,
            num_parallel=num_parallel,
            hasher=hasher,
        )
        return
    if hasher is not None:
        hash_head(inner, hasher)
    label = None
    if limits.wants("label") and classes:
        names = {name: number for number, name in enumerate(class_names or classes)}
        label = number_of_class(inner.class_name or "", names, part)
        limits = replace(limits, ignore=sorted({*limits.ignore, "label"}))
    open_inner = partial(open_inner_tar, part, inner, part_bytes=part_bytes, num_parallel=num_parallel)
    with _Tar(inner.path, open_inner).samples(
        f"{shard} ({show_path(inner.path)})", limits, notices, regroup, hasher
    ) as samples:
        yield name_within(samples, class_of_tar(inner.path), label)


@dataclass(frozen=True)
class _Tar:
    """A tar, compressed where its name says so, and how its stream is opened."""

    name: str
    open: Callable[[], BinaryIO]

    @contextmanager
    def samples(
        self, shard: str, limits: ShardLimits, notices: Notices, regroup: bool, hasher: Any
    ) -> Iterator[Iterator[ImageSample | Quarantined]]:
        with ExitStack() as streams:

            def open_stream(hasher: Any = None) -> BinaryIO:
                stream: Any = streams.enter_context(self.open())
                if hasher is not None:
                    stream = streams.enter_context(storage.HashingReader(stream, hasher))
                if is_compressed_tar(self.name):
                    stream = streams.enter_context(Decompressed(stream, self.name))
                return stream

            first = open_stream(hasher)
            if regroup:
                passes = iter([lambda: first, open_stream])
                yield read_regrouped(lambda: next(passes)(), shard=shard, limits=limits, notices=notices)
            else:
                yield read_samples(first, shard=shard, limits=limits, notices=notices)


def _open(url: str, info: storage.SourceInfo, part_bytes: int, num_parallel: int) -> BinaryIO:
    return storage.open_stream(url, part_bytes=part_bytes, num_parallel=num_parallel, info=info)
