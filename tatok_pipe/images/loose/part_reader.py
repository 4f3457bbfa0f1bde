"""A part of a folder, of a manifest or of a tar of tars as samples, and which version of it is there."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tatok_pipe import storage
from tatok_pipe.images.fields import MAX_KEY_CHARACTERS, shorten_key
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.loose.image_list import ListedFile, PartContent, describe_part, read_part, show_path
from tatok_pipe.images.loose.inner_tars import open_inner_tar
from tatok_pipe.images.loose.web_hosts import HostUnreachable, WebHosts
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet.samples import check_class_names
from tatok_pipe.images.shard_errors import LastingShardError
from tatok_pipe.images.webdataset.sample_files import Named, group_samples
from tatok_pipe.images.webdataset.tar import Member
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import LastingError, ListedPart, SourceInfo

_CHUNK_BYTES = 4 << 20
_UNREACHABLE = "HostUnreachable"
_hosts = WebHosts()  # of this process, which reads many parts with images of the same servers
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def part_info(part: ListedPart) -> SourceInfo:
    """What tells the version of a part that is there now from another. Stores are not asked: what they told is in the
    list. Raises FileNotFoundError where a local file of a folder is gone."""
    now: list[ListedFile] = []
    times_ns: list[int | None] = []
    for file in read_part(part).files:
        filesystem, path = storage.open_filesystem(file.url(part.source))
        is_local = storage.is_local(filesystem)
        status = _look_at(path, file) if is_local else None
        times_ns.append((status.st_mtime_ns if status else 0) if is_local else None)
        is_asked = is_local and file.offset is None
        now.append(replace(file, size_bytes=status.st_size if status else None) if is_asked else file)
    return describe_part(now, times_ns, now_ns=time.time_ns())


def _look_at(path: str, file: ListedFile) -> os.stat_result | None:
    """None where a manifest names what is no file."""
    try:
        status = os.stat(path)
    except _NOT_THERE:
        if file.key is None:
            raise
        return None
    return status if file.key is None or stat.S_ISREG(status.st_mode) else None


def hash_part(part: ListedPart) -> str:
    """SHA-256 of what the list says of the files of a part, and of their contents, 64 hex digits."""
    hasher = hashlib.sha256()
    for file in read_part(part).files:
        hash_head(file, hasher)
        if file.offset is None:
            _hash_file(file.url(part.source), file, hasher)
        else:
            with storage.HashingReader(open_inner_tar(part, file), hasher) as stream:
                stream.read_rest()
    return hasher.hexdigest()


def read_part_samples(
    part: ListedPart,
    content: PartContent,
    *,
    limits: ShardLimits,
    notices: Notices,
    class_names: tuple[str, ...] = (),
    num_parallel: int = 8,
    hasher: Any = None,
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a part in order, given what `read_part` has of it, some files fetched ahead; as
    `read_samples` has those of a tar.

    The label is the place of the name of the image's class among `class_names`, or among those of the list; where it
    has none, the number that its files or its row tell; none where `limits` ignores labels. Of a manifest, an image
    that is not there is quarantined as NotFound, one that a web server refuses as NotServed, and one whose web server
    does not answer, although others do, as HostUnreachable. Raises LastingShardError for a class that `class_names`
    lack, UnusableShard where its classes are numbers and are called otherwise than `class_names`, OSError where a file
    is not as it was listed, where a store does not answer, and where no web server does.
    """
    files = content.files
    classes, called = (content.classes, content.class_names) if limits.wants("label") else ((), ())
    if called and class_names:
        check_class_names(called, class_names, storage.redact(str(part)))
    names = {name: label for label, name in enumerate(class_names or classes)} if classes else {}
    if files[0].key is None:
        read = _read_files(part, files, bool(classes), limits, notices, num_parallel, hasher)
    else:
        read = _read_rows(part, files, limits, num_parallel, hasher)
    for number, (name, sample) in enumerate(read):
        if not classes or name is None or not isinstance(sample, ImageSample):
            yield sample
        else:
            yield replace(sample, label=number_of_class(name, names, part, number))


def number_of_class(name: str, names: Mapping[str, int], part: ListedPart, num_samples: int = 0) -> int:
    """The label of a class, found in a part after `num_samples` samples. Raises LastingShardError where it has none."""
    if name not in names:
        raise LastingShardError(
            storage.redact(str(part)),
            num_samples,
            f"class {name!r} is none of the {len(names)} that are known",
            "give input.class_names with all classes",
        )
    return names[name]


def _read_files(
    part: ListedPart,
    files: Sequence[ListedFile],
    has_classes: bool,
    limits: ShardLimits,
    notices: Notices,
    num_parallel: int,
    hasher: Any,
) -> Iterator[tuple[str | None, ImageSample | Quarantined]]:
    """The samples of a folder, each with the name of its class."""
    if has_classes:
        limits = replace(limits, ignore=sorted({*limits.ignore, "label"}))

    def fetch(file: ListedFile) -> bytes | None:
        size = file.size_bytes or 0
        if file.extension not in limits.extensions or size > limits.largest(file.extension):
            return None
        return _read(file.url(part.source), size)

    def named() -> Iterator[Named]:
        with ThreadPoolExecutor(num_parallel, "folder") as pool:
            fetched = map_ahead(pool, fetch, files, max_items=num_parallel)
            for file, data in zip(files, fetched, strict=True):
                _hash(file, data, part, hasher)
                key = show_path(file.sample)
                short = shorten_key(key)
                member = Member(file.path, file.size_bytes or 0, True, data)
                yield Named(short, file.extension, member, short != key)

    for sample in group_samples(named(), limits, notices):
        yield sample.key.partition("/")[0], sample


@dataclass(frozen=True)
class _Refusal:
    """Why there is no image, as in `Quarantined`."""

    error: str
    message: str


def _read_rows(
    part: ListedPart, files: Sequence[ListedFile], limits: ShardLimits, num_parallel: int, hasher: Any
) -> Iterator[tuple[str | None, ImageSample | Quarantined]]:
    """The images of a manifest, each with the name of its class."""
    limit = limits.max_member_bytes

    def fetch(file: ListedFile) -> bytes | _Refusal:
        if file.size_bytes is not None and file.size_bytes > limit:
            return _Refusal("TooManyBytes", f"{file.size_bytes} bytes, more than max_member_bytes={limit}")
        url = file.url(part.source)
        try:
            if file.size_bytes is not None:
                return _read(url, file.size_bytes)
            if storage.is_http(storage.open_filesystem(url)[0]):
                data = _hosts.read(url, limit + 1, silence_s=limits.max_silence_s)
            else:
                data = storage.read_at_most(url, limit + 1)
        except HostUnreachable as error:
            return _Refusal(_UNREACHABLE, str(error))
        except _NOT_THERE as error:
            return _Refusal("NotFound", _in_one_line(error))
        except LastingError as error:
            return _Refusal("NotServed", _in_one_line(error))
        except PermissionError as error:
            # Of a web server it is true of the image. Anywhere else the credentials are those of all images.
            if not storage.is_http(storage.open_filesystem(url)[0]):
                raise
            return _Refusal("NotServed", _in_one_line(error))
        return _Refusal("TooManyBytes", f"more than max_member_bytes={limit}") if len(data) > limit else data

    unreached = ""
    with ThreadPoolExecutor(num_parallel, "manifest") as pool:
        fetched = map_ahead(pool, fetch, files, max_items=num_parallel)
        for file, data in zip(files, fetched, strict=True):
            if isinstance(data, _Refusal) and data.error == _UNREACHABLE:
                unreached = unreached or data.message
            _hash(file, data if isinstance(data, bytes) else None, part, hasher)
            yield file.class_name, _make_sample(file, data, limits)
    if unreached and not _hosts.has_answer:
        raise OSError(
            f"{storage.redact(str(part))}: none of its web servers answers, {unreached}, first; where this machine has "
            "its network, take out the rows of servers that are gone"
        )


def _make_sample(file: ListedFile, data: bytes | _Refusal, limits: ShardLimits) -> ImageSample | Quarantined:
    key = shorten_key(file.sample)
    size = len(data) if isinstance(data, bytes) else file.size_bytes or 0
    if key != file.sample:
        data = _Refusal("LongKey", f"a key of more than {MAX_KEY_CHARACTERS} characters")
    if isinstance(data, _Refusal):
        return Quarantined(key, "shard", data.error, data.message, size)
    label = file.label if limits.wants("label") else None
    return ImageSample(key, data, label, file.caption if limits.wants("caption") else None)


def _in_one_line(error: OSError) -> str:
    return " ".join(storage.redact(str(error)).split())


def _read(url: str, size_bytes: int) -> bytes:
    data = storage.read_bytes(url)
    if len(data) != size_bytes:
        raise OSError(
            f"{storage.redact(url)}: changed while it was read: {size_bytes} bytes before, {len(data)} after"
        )
    return data


def _hash(file: ListedFile, data: bytes | None, part: ListedPart, hasher: Any) -> None:
    """Take in a file as `hash_part` does; `data` is its content where it was read."""
    if hasher is None:
        return
    hash_head(file, hasher)
    if data is None:
        _hash_file(file.url(part.source), file, hasher)
    else:
        hasher.update(data)


def hash_head(file: ListedFile, hasher: Any) -> None:
    """Take in what the list says of a file."""
    hasher.update(f"{file.identity}\0{file.size_bytes}\0".encode("utf-8", "surrogateescape"))


def _hash_file(url: str, file: ListedFile, hasher: Any) -> None:
    if file.size_bytes is None:  # what a manifest names and was not there
        return
    with storage.open_stream(url) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
