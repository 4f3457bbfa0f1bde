"""A tar of tars, a class each, as ImageNet's training set is published: every tar within it as an image shard of its
own.

The plan reads nothing but headers, and a shard is the bytes of its tar alone. A key is the name of the inner tar
without its ending, which is the class as well, a slash, and the key within it; so it is what class folders give.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, BinaryIO

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import MAX_NAMES, are_names
from tatok_pipe.images.fields import MAX_KEY_CHARACTERS, shorten_key
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.loose.image_list import ListedFile, extension_of, show_path
from tatok_pipe.images.loose.part_plan import PartPlan, plan_parts
from tatok_pipe.images.webdataset.compressed import TAR_SUFFIXES, Decompressed, is_compressed_tar
from tatok_pipe.images.webdataset.tar import (
    BLOCK_BYTES,
    BrokenTar,
    NotTar,
    Place,
    find_places,
    is_header_of,
    read_places,
)
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage import ListedPart, SourceInfo

_LOOK_BYTES = 64 << 10  # headers are this far apart, or further
_HEADER_BYTES = 4 << 10  # of an inner tar; most of the first member of one
_MAX_LOOKED = 8  # members of other kinds before the first tar or image
_OF_IMAGES = frozenset((*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS))
_APART = "pack images and tars apart"


def class_of_tar(name: str) -> str:
    """The name of an inner tar without its folders and its ending: the class, and the first part of its keys."""
    base = name.rpartition("/")[2]
    ending = max((end for end in TAR_SUFFIXES if base.lower().endswith(end)), key=len, default="")
    return base[: len(base) - len(ending)]


def holds_tars(url: str, info: SourceInfo) -> bool:
    """Whether the first tar or image in a tar is a tar, by its name, from the beginning of the file alone. False also
    of what cannot be read, which is told when its turn comes."""
    try:
        with storage.open_stream(url, part_bytes=_LOOK_BYTES, num_parallel=1, info=info) as stream:
            source: Any = Decompressed(stream, url) if is_compressed_tar(url) else stream
            for number, place in enumerate(read_places(source)):
                if _is_tar(place) or _is_image(place):
                    return _is_tar(place)
                if number == _MAX_LOOKED or place.end > _LOOK_BYTES:
                    return False
    except (OSError, BrokenTar):
        pass
    return False


def plan_inner_tars(
    url: str, info: SourceInfo, *, list_url: str, limits: ShardLimits = DEFAULT_LIMITS
) -> PartPlan:
    """The parts of the tar of tars `info` at `url`, one for each of these, given the list at `list_url`, where there is
    one. What else is in it is not read.

    Raises UserError as `plan_parts`, and where a part could not be read by itself: a compressed tar of tars, one on a
    web server without byte ranges; where images lie beside the tars, or two of these have one name; and where an inner
    tar holds nothing, or tars, or is none.
    """
    shown = storage.redact(url)
    if is_compressed_tar(url):
        raise UserError(
            f"{shown}: a tar of tars, compressed as a whole; decompress it, so that each can be read alone"
        )
    filesystem, path = storage.open_filesystem(url)
    if storage.is_http(filesystem) and not storage.source_gives_ranges(filesystem, path, url):
        raise UserError(f"{shown}: a tar of tars, on a server that gives no byte ranges; download it first")
    found: dict[str, Place] = {}
    others = 0
    try:
        with closing(
            storage.open_random_access(url, info=info, block_bytes=_LOOK_BYTES, num_ahead=1)
        ) as file:
            for place in find_places(
                file,
                size_bytes=info.size_bytes,
                max_members=limits.max_members,
                require_end_marker=limits.require_end_marker,
            ):
                if _is_image(place):
                    raise UserError(f"{shown}: holds tars, and the image {place.name} beside them; {_APART}")
                if not _is_tar(place) or not class_of_tar(place.name):
                    others += 1
                    continue
                name = class_of_tar(place.name)
                if name in found:
                    raise UserError(
                        f"{shown}: {found[name].name} and {place.name} are both class {name!r}; give each a name of "
                        "its own"
                    )
                _check_inner(file, place, shown)
                found[name] = place
    except BrokenTar as error:
        raise UserError(f"{shown}: {error}; {error.advice}") from None
    names = sorted(found)
    classes, note = tuple(names), ""
    if not are_names(classes):
        classes = ()
        note = f"{len(names)} tars, whose names are no classes: more than {MAX_NAMES}, or a name of several lines"
    elif others:
        note = f"{others} members beside the {len(names)} tars in it are not read"
    is_local = storage.is_local(filesystem)

    def find(stem: str) -> list[tuple[ListedFile, int | None]]:
        place = places[stem]
        listed = ListedFile(
            place.name, place.size, info.etag, class_name=class_of_tar(place.name), offset=place.offset
        )
        return [(listed, info.mtime_ns if is_local else None)]

    places = {ListedFile(place.name, None).sample: place for place in found.values()}
    return plan_parts(
        url, sorted(places), find, classes=classes, list_url=list_url, images_per_part=1, note=note
    )


def open_inner_tar(
    part: ListedPart, file: ListedFile, *, part_bytes: int = 16 << 20, num_parallel: int = 8
) -> BinaryIO:
    """A stream of an inner tar: nothing else is read of the outer one but the header before it. Raises OSError where
    it is not where it was listed."""
    offset, size = file.offset or 0, file.size_bytes or 0
    info = storage.file_info(part.source)
    changed = OSError(
        f"{storage.redact(str(part))}: {show_path(file.path)} is not where it was; the file has changed"
    )
    if offset + size > info.size_bytes:
        raise changed
    stream = storage.open_stream(
        part.source,
        part_bytes=part_bytes,
        num_parallel=num_parallel,
        info=info,
        span=(offset - BLOCK_BYTES, offset + size),
    )
    try:
        if not is_header_of(stream.read(BLOCK_BYTES), show_path(file.path), size):
            raise changed
    except BaseException:
        stream.close()
        raise
    return stream


def name_within(
    samples: Iterator[ImageSample | Quarantined], folder: str, label: int | None
) -> Iterator[ImageSample | Quarantined]:
    """The samples of an inner tar, with the keys and the label that they have in the outer one."""
    for sample in samples:
        key = f"{folder}/{sample.key}"
        short = shorten_key(key)
        if not isinstance(sample, ImageSample):
            yield replace(sample, key=short)
        elif short != key:
            told = f"a key of more than {MAX_KEY_CHARACTERS} characters"
            yield Quarantined(short, "shard", "LongKey", told, len(sample.image))
        else:
            yield replace(sample, key=key, label=sample.label if label is None else label)


def _check_inner(file: Any, place: Place, shown: str) -> None:
    """Look into the beginning of an inner tar. Raises UserError where it holds nothing, or tars, or is none."""
    if not place.size:
        raise UserError(f"{shown}: {place.name} in it has 0 bytes; pack it again, or leave it out")
    if is_compressed_tar(place.name):
        return  # it is known when it is read
    file.seek(place.offset)
    begin = io.BytesIO(file.read(min(place.size, _HEADER_BYTES)))
    try:
        first = next(read_places(begin), None)
    except NotTar as error:
        raise UserError(f"{shown}: {place.name} in it: {error}; {error.advice}") from None
    except BrokenTar:
        return  # its first header may be longer than what was read
    if first is not None and _is_tar(first):
        raise UserError(
            f"{shown}: {place.name} in it holds tars as well, first {first.name}; unpack the outer one, and give those "
            "in it one at a time"
        )


def _is_tar(place: Place) -> bool:
    return place.is_file and place.name.lower().endswith(TAR_SUFFIXES)


def _is_image(place: Place) -> bool:
    return place.is_file and extension_of(place.name) in _OF_IMAGES
