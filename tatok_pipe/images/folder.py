"""A folder of loose images, on any store, as the image shards that the rest of the program knows: its parts.

What belongs to an image is what has its name with another extension, as in a tar; its key is its path below the folder
without the extension. Where every image is in a folder of its own kind, the names of these folders are the classes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tatok_pipe import storage
from tatok_pipe.class_names import MAX_NAMES, are_names
from tatok_pipe.errors import UserError
from tatok_pipe.images.fields import shorten_key
from tatok_pipe.images.folder_list import (
    ListedFile,
    describe_part,
    load_list,
    read_part,
    write_list,
)
from tatok_pipe.images.limits import IMAGE_EXTENSIONS, METADATA_EXTENSIONS, UNREAD_EXTENSIONS, ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.images.sample_files import Named, group_samples
from tatok_pipe.images.shards import LastingShardError
from tatok_pipe.images.tar import Member
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import FolderPart, ShardFile, SourceInfo

_OF_IMAGES = frozenset((*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS))
_OF_SAMPLES = _OF_IMAGES.union(METADATA_EXTENSIONS)
_OF_SYSTEMS = frozenset(("__MACOSX", "@eaDir"))  # folders of thumbnails and the like beside the images
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
_NO_CLASSES = (
    "some images are in folders and some beside these, so that the names of the folders are no classes; move them into "
    "folders too where they should be"
)
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class FolderPlan:
    """The parts of a folder as they are now, their list, and whether it is another one than was there before."""

    list_bytes: bytes
    infos: dict[int, SourceInfo]  # of the parts that have files, by number
    is_new: bool
    note: str = ""  # what a user ought to know

    def shards(self, folder: str, list_url: str) -> list[ShardFile]:
        """The parts as image shards, for a list that is at `list_url`."""
        root = storage.openable_url(folder).rstrip("/")
        return [
            ShardFile(str(FolderPart(root, number, list_url)), info.size_bytes, info.etag, info.mtime_ns)
            for number, info in self.infos.items()
        ]


def is_image(name: str) -> bool:
    """Whether a file is an image, also one that is not read, by its name or URL."""
    return _extension(name) in _OF_IMAGES


def plan_folder(
    folder: str,
    files: Sequence[ShardFile],
    *,
    list_url: str,
    images_per_part: int = IMAGES_PER_PART,
) -> FolderPlan:
    """The parts of the folder at `folder` in which these files are, given the list at `list_url`, where there is one.

    Parts are of `images_per_part` images by sorted path; images that the list does not know make new parts, and a file
    that is gone leaves its part. Raises UserError where the folder has parts for training and for validation, or the
    list is that of another folder.
    """
    root = folder.rstrip("/") + "/"
    samples = _group(files, start=len(root))
    known = load_list(list_url)
    canonical = storage.canonical_url(folder)
    if known is not None and known.folder != canonical:
        raise UserError(
            f"{storage.redact(folder)}: what is there was begun from the folder {known.folder}; give another output.url"
        )
    classes, note = _find_classes(folder, samples)
    part_of = {_stem(path): number for path, number in known.part_of.items()} if known else {}
    data = known.data if known else b""
    parts: list[list[str]] = [[] for _ in range(known.num_parts)] if known else []
    del known  # a million paths
    fresh: list[str] = []
    for stem in samples:
        (parts[part_of[stem]] if stem in part_of else fresh).append(stem)
    del part_of
    parts += [fresh[at : at + images_per_part] for at in range(0, len(fresh), images_per_part)]
    now_ns = time.time_ns()
    infos: dict[int, SourceInfo] = {}

    def listed() -> Iterator[list[ListedFile]]:
        for number, stems in enumerate(parts):
            found = [file for stem in stems for file in samples[stem]]
            part = [ListedFile(file.url[len(root) :], file.size_bytes or 0, file.etag) for file in found]
            if part:
                times_ns = [file.mtime_ns for file in found if file.mtime_ns]
                infos[number] = describe_part(part, times_ns, now_ns=now_ns)
            yield part

    list_bytes = write_list(canonical, listed(), classes)
    return FolderPlan(list_bytes, infos, list_bytes != data, note)


def _group(files: Sequence[ShardFile], *, start: int) -> dict[str, list[ShardFile]]:
    """The files of every image by its path without the extension, both sorted."""
    paired = []
    with_image: set[str] = set()
    for file in files:
        path = file.url[start:]
        extension = _extension(path)
        if extension in _OF_SAMPLES and not _is_hidden(path):
            paired.append((_stem(path), file))
            if extension in _OF_IMAGES:
                with_image.add(paired[-1][0])
    paired.sort(key=lambda pair: (pair[0], pair[1].url))
    return {
        stem: [file for _, file in run]
        for stem, run in groupby(paired, key=lambda pair: pair[0])
        if stem in with_image
    }


def _find_classes(folder: str, samples: dict[str, list[ShardFile]]) -> tuple[tuple[str, ...], str]:
    """Names of the classes, and what a user ought to know of them."""
    tops = sorted({_show(stem.partition("/")[0]) for stem in samples if "/" in stem})
    splits = [top for top in tops if top.lower() in _SPLITS]
    if splits and all(top in splits for top in tops):
        raise UserError(
            f"{storage.redact(folder)}: has the folders {', '.join(tops)}; give one of them, as in "
            f"{storage.redact(storage.join(folder, splits[0]))}"
        )
    if tops and any("/" not in stem for stem in samples):
        return (), _NO_CLASSES
    if tops and not are_names(tops):
        return (
            (),
            f"{len(tops)} folders, which are no classes: more than {MAX_NAMES}, or a name of several lines",
        )
    return tuple(tops), ""


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") or name in _OF_SYSTEMS for name in path.split("/"))


def _show(path: str) -> str:
    """A path as text: what is not UTF-8 as \\xNN, as in tars."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _extension(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2].lower()


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def part_info(part: FolderPart) -> SourceInfo:
    """What tells the version of a part that is there now from another. A store with ETags is not asked: the list has
    them. Raises FileNotFoundError where a local file is gone."""
    files, _ = read_part(part)
    if any(file.etag for file in files) or not storage.is_local(storage.open_filesystem(part.folder)[0]):
        return describe_part(files, (), now_ns=0)
    statuses = [os.stat(os.path.join(part.folder, file.path)) for file in files]
    now = [replace(file, size_bytes=status.st_size) for file, status in zip(files, statuses, strict=True)]
    return describe_part(now, [status.st_mtime_ns for status in statuses], now_ns=time.time_ns())


def hash_part(part: FolderPart) -> str:
    """SHA-256 of the paths, sizes and contents of the files of a part, 64 hex digits."""
    hasher = hashlib.sha256()
    for file in read_part(part)[0]:
        _hash_head(file, hasher)
        _hash_file(storage.join(part.folder, file.path), hasher)
    return hasher.hexdigest()


def read_folder_samples(
    part: FolderPart,
    *,
    limits: ShardLimits,
    notices: Notices,
    class_names: tuple[str, ...] = (),
    num_parallel: int = 8,
    hasher: Any = None,
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a part in order, some files of it fetched ahead; as `read_samples` has those of a tar.

    The label is the place of the image's folder among `class_names`, or among the classes of the folder; where it has
    none, what the files of the sample say; none where `limits` ignores labels. Raises LastingShardError for a class
    that `class_names` lack, OSError where a file is not as it was listed.
    """
    files, classes = read_part(part)
    classes = classes if limits.wants("label") else ()
    names = {name: label for label, name in enumerate(class_names or classes)} if classes else {}
    if classes:
        limits = replace(limits, ignore=sorted({*limits.ignore, "label"}))

    def fetch(file: ListedFile) -> bytes | None:
        extension = _extension(file.path)
        if extension not in limits.extensions or file.size_bytes > limits.largest(extension):
            return None
        return _read(storage.join(part.folder, file.path), file.size_bytes)

    def named() -> Iterator[Named]:
        with ThreadPoolExecutor(num_parallel, "folder") as pool:
            fetched = map_ahead(pool, fetch, files, max_items=num_parallel)
            for file, data in zip(files, fetched, strict=True):
                if hasher is not None:
                    _hash_head(file, hasher)
                    if data is None:
                        _hash_file(storage.join(part.folder, file.path), hasher)
                    else:
                        hasher.update(data)
                key = _show(_stem(file.path))
                short = shorten_key(key)
                member = Member(file.path, file.size_bytes, True, data)
                yield Named(short, _extension(file.path), member, short != key)

    for number, sample in enumerate(group_samples(named(), limits, notices)):
        name = sample.key.partition("/")[0]
        if not classes or not isinstance(sample, ImageSample):
            yield sample
        elif name in names:
            yield replace(sample, label=names[name])
        else:
            raise LastingShardError(
                storage.redact(str(part)),
                number,
                f"class {name!r} is none of the {len(names)} that are known",
                "give input.class_names with all classes",
            )


def _read(url: str, size_bytes: int) -> bytes:
    data = storage.read_bytes(url)
    if len(data) != size_bytes:
        raise OSError(
            f"{storage.redact(url)}: changed while it was read: {size_bytes} bytes before, {len(data)} after"
        )
    return data


def _hash_head(file: ListedFile, hasher: Any) -> None:
    hasher.update(f"{file.path}\0{file.size_bytes}\0".encode("utf-8", "surrogateescape"))


def _hash_file(url: str, hasher: Any) -> None:
    with storage.open_stream(url) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
