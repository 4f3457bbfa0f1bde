"""A tar whose members are in any order, read twice, as samples. The images are never held, only what is small.

The first pass learns what belongs to each key and keeps labels, captions and JSON; the second one gives each
sample where its image lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.images.webdataset.sample_files import Files, Named, find_fault, make_sample
from tatok_pipe.images.webdataset.samples import check_samples, read_named, shard_error
from tatok_pipe.images.webdataset.tar import BrokenTar
from tatok_pipe.records import ImageSample, Quarantined

# What the first pass may keep: keys and metadata, with what Python adds to each (measured: 500 to 600 bytes a key).
MAX_KEPT_BYTES = 512 << 20
_KEY_BYTES = 600
_FIELD_BYTES = 100


def read_regrouped(
    open_stream: Callable[[], AbstractContextManager[BinaryIO]],
    *,
    shard: str,
    limits: ShardLimits = DEFAULT_LIMITS,
    max_kept_bytes: int = MAX_KEPT_BYTES,
    notices: Notices | None = None,
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a WebDataset tar, its files in any order, in the order of the images; both times
    `open_stream` gives the whole shard, from its first byte.

    As `read_samples`, except that a key is one sample wherever its files lie: a key with several images is one
    AmbiguousImage. A sample that cannot have an image comes where its first file is. Raises ShardError; also
    where more than `max_kept_bytes` would be kept, and where the second pass finds other members.
    """
    notices = Notices() if notices is None else notices
    num_samples = 0
    try:
        with open_stream() as stream:
            samples, fingerprint = _collect(stream, shard, limits, notices, max_kept_bytes)
        check_samples(len(samples), shard, notices)
        with open_stream() as stream:
            # What is told of files of no sample was told in the first pass.
            members = _Members(stream, limits, Notices(), keep=frozenset(IMAGE_EXTENSIONS))
            for entry in members:
                files = samples.get(entry.key)
                if files is None:
                    continue  # given already; a new key shows in the fingerprint
                is_faulty = find_fault(files, limits) is not None
                if not is_faulty and (entry.extension not in IMAGE_EXTENSIONS or not entry.member.is_file):
                    continue
                if not is_faulty and entry.member.data is None:
                    break  # the file has changed
                samples[entry.key] = None
                yield make_sample(entry.key, files, entry.member.data, limits, notices)
                num_samples += 1
            else:
                if members.fingerprint == fingerprint:
                    return
            raise ShardError(shard, num_samples, "changed while it was read")
    except BrokenTar as error:
        raise shard_error(shard, num_samples, error) from None


class _Members:
    """The members of samples, and a fingerprint of those that have gone by."""

    def __init__(
        self, stream: BinaryIO, limits: ShardLimits, notices: Notices, *, keep: frozenset[str]
    ) -> None:
        self._members = read_named(stream, limits, notices, wanted=keep.__contains__)
        self._digest = hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Iterator[Named]:
        for entry in self._members:
            member = entry.member
            self._digest.update(f"{member.name}\0{member.size}\0{member.is_file}\n".encode())
            yield entry

    @property
    def fingerprint(self) -> bytes:
        return self._digest.digest()


def _collect(
    stream: BinaryIO, shard: str, limits: ShardLimits, notices: Notices, max_kept_bytes: int
) -> tuple[dict[str, Files | None], bytes]:
    """Key -> all its files but the image's data; and the fingerprint of the members."""
    samples: dict[str, Files | None] = {}
    num_kept_bytes = 0
    members = _Members(stream, limits, notices, keep=limits.metadata_extensions)
    for entry in members:
        files = samples.get(entry.key)
        if files is None:
            files = samples[entry.key] = Files()
            num_kept_bytes += _KEY_BYTES + 4 * len(entry.key)
        num_fields = len(files.metadata)
        files.add(entry, limits)
        if len(files.metadata) > num_fields:
            num_kept_bytes += _FIELD_BYTES + len(entry.member.data or b"")
        if num_kept_bytes > max_kept_bytes:
            raise ShardError(
                shard,
                0,
                f"the files of a sample do not follow one another, and the metadata of {len(samples)} samples "
                f"take more than the {max_kept_bytes} bytes that may be held to bring them together",
                "pack the shard again sorted by name",
            )
    return samples, members.fingerprint
