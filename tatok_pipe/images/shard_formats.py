"""The formats of image shards: by the end of a name, what reads it. A new one is a module and a row here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet.samples import read_parquet
from tatok_pipe.images.webdataset.compressed import TAR_SUFFIXES
from tatok_pipe.images.webdataset.zip import read_zip
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import file_name
from tatok_pipe.storage.random_access import RandomAccess

PARQUET_SUFFIX = ".parquet"


class ReadSamples(Protocol):
    """Gives the samples of the seekable `file` in order; `shard` is its name in messages, `class_names` those of the
    corpus, where it has any. Raises ShardError; errors of the file itself pass through."""

    def __call__(
        self,
        file: RandomAccess,
        *,
        shard: str,
        limits: ShardLimits,
        notices: Notices,
        class_names: tuple[str, ...],
    ) -> Iterator[ImageSample | Quarantined]: ...


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """A format of image shards that is read where one likes."""

    suffix: str  # in small letters, with its dot
    read: ReadSamples


def _read_zip(
    file: Any, *, class_names: tuple[str, ...], **options: Any
) -> Iterator[ImageSample | Quarantined]:
    return read_zip(file, **options)  # it tells no class by name


# Where files of several formats are, those of the first, and tars before them all: img2dataset puts a Parquet beside
# each tar.
SHARD_FORMATS = (ShardFormat(".zip", _read_zip), ShardFormat(PARQUET_SUFFIX, read_parquet))
SUFFIXES_BY_RANK = (TAR_SUFFIXES, *((each.suffix,) for each in SHARD_FORMATS))
SHARD_SUFFIXES = tuple(suffix for suffixes in SUFFIXES_BY_RANK for suffix in suffixes)


def reader_of(url: str) -> ReadSamples | None:
    """What reads a shard, by the end of its name; None of a tar, which is read as a stream, and of every other name."""
    name = file_name(url)
    return next((each.read for each in SHARD_FORMATS if name.endswith(each.suffix)), None)
