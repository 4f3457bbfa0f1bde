"""A zip archive as samples, read as a tar of the same files would be."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.webdataset.sample_files import group_samples
from tatok_pipe.images.webdataset.samples import (
    check_samples,
    key_of,
    name_members,
    shard_error,
    wants_member,
)
from tatok_pipe.images.webdataset.tar import BrokenTar, Member, NotTar
from tatok_pipe.records import ImageSample, Quarantined

_ENCRYPTED = 0x1  # flag of a member
_SPLIT = "split the shard, or raise {}"


def read_zip(
    file: Any, *, shard: str, limits: ShardLimits = DEFAULT_LIMITS, notices: Notices | None = None
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a zip archive, in the order of their first files, as `read_samples` has those of a tar: but as the
    list of its files is known first, those of a sample need not follow one another. `file` is seekable. Raises
    ShardError; errors of the file itself pass through."""
    notices = Notices() if notices is None else notices
    num_samples = 0
    try:
        members = _read_members(file, wants_member(limits, limits.extensions.__contains__), limits)
        for sample in group_samples(name_members(members, notices), limits, notices):
            yield sample
            num_samples += 1
    except BrokenTar as error:
        raise shard_error(shard, num_samples, error) from None
    check_samples(num_samples, shard, notices)


def _read_members(file: Any, wanted: Callable[[str, int], bool], limits: ShardLimits) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise BrokenTar(f"no zip archive, or not the whole of one ({error})") from None
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > limits.max_members:
        raise NotTar(f"more than max_members={limits.max_members} members", _SPLIT.format("max_members"))
    if (total := sum(info.file_size for info in infos)) > limits.max_shard_bytes:
        raise NotTar(
            f"members of {total} bytes, more than max_shard_bytes={limits.max_shard_bytes}",
            _SPLIT.format("max_shard_bytes"),
        )
    first: dict[str, int] = {}
    for number, info in enumerate(infos):
        first.setdefault(key_of(info.filename), number)
    infos.sort(key=lambda info: first[key_of(info.filename)])
    for info in infos:
        data = _read_member(archive, info) if wanted(info.filename, info.file_size) else None
        yield Member(info.filename, info.file_size, True, data)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & _ENCRYPTED:
        raise NotTar(f"{info.filename} is encrypted", "pack it again without a password")
    try:
        with archive.open(info) as member:
            data = member.read(info.file_size + 1)
    except NotImplementedError as error:
        raise NotTar(
            f"{info.filename}: {error}", "pack it again with deflate, or without compression"
        ) from None
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise BrokenTar(f"{info.filename}: damaged ({' '.join(str(error).split())})") from None
    if len(data) != info.file_size:
        raise BrokenTar(f"{info.filename}: {len(data)} bytes, {info.file_size} were declared")
    return data
