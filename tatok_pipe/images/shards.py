"""A WebDataset shard, read once from front to back, as samples. Nothing is extracted, unpickled or sought.

A sample is a run of consecutive files that share their path up to the first dot of the base name (its key);
the rest of the name, lower-cased, says what the file holds. Every run ends as ImageSample or Quarantined, so
nothing in a shard is lost in silence, and a shard that cannot be read to its end raises ShardError.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO

from tatok_pipe.images.tar import BrokenTar, Member, read_members
from tatok_pipe.options import option
from tatok_pipe.records import ImageSample, Quarantined

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_CAPTION_EXTENSIONS = ("txt", "caption")
# Whatever else lies in a shard is passed over unread: .pyd and .pkl above all, which would be programs.
_KNOWN_EXTENSIONS = frozenset({*IMAGE_EXTENSIONS, *_CAPTION_EXTENSIONS, "cls", "json"})


@dataclass(frozen=True)
class ShardLimits:
    """What is accepted of an image shard."""

    max_member_bytes: int = option(
        256 << 20, help="largest image, label, caption or JSON file; larger is quarantined", unit="bytes"
    )
    require_end_marker: bool = option(
        True, help="refuse a shard without tar's end-of-archive marker: its last members may be missing"
    )

    def __post_init__(self) -> None:
        if self.max_member_bytes < 1:
            raise ValueError(f"max_member_bytes={self.max_member_bytes}: expected at least 1 byte")


DEFAULT_LIMITS = ShardLimits()


class ShardError(Exception):
    """A shard that cannot be read to its end. `num_samples` were read before the damage."""

    def __init__(self, shard: str, num_samples: int, reason: str) -> None:
        super().__init__(f"{shard}: {reason}, after {num_samples} samples; write or copy the shard again")
        self.num_samples = num_samples
        self._arguments = (shard, num_samples, reason)

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, int, str]]:
        """Errors cross processes: by their arguments, since the default would pass the message as the first."""
        return type(self), self._arguments


def read_samples(
    stream: BinaryIO, *, shard: str, limits: ShardLimits = DEFAULT_LIMITS
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a WebDataset tar, in order, holding one at a time; `shard` is its name in messages.

    The image has one of IMAGE_EXTENSIONS; `cls` is the label, an int32 in decimal; the caption is `txt`, or
    `caption` where there is no `txt`; `json` is kept as text. All but the image may be missing. Names are
    only names, so absolute paths and `..` do no harm; what in them is not UTF-8 appears as \\xNN. A name with
    no dot, or with nothing before it (macOS's `._x.jpg`), and WebDataset's `__meta__` names are of no sample.

    Quarantined, stage "shard": NoImage, AmbiguousImage, DuplicateField, DuplicateKey, TooManyBytes; stage
    "metadata": BadLabel, BadCaption, BadJson; `num_bytes` counts all files of the sample. Raises ShardError;
    what came before it were whole samples. Errors of the stream itself pass through.
    """
    members = read_members(
        stream,
        wanted=lambda name: _split_name(name)[1] in _KNOWN_EXTENSIONS,
        max_member_bytes=limits.max_member_bytes,
        require_end_marker=limits.require_end_marker,
    )
    named = ((*_split_name(member.name), member) for member in members)
    runs = groupby((entry for entry in named if entry[0]), key=lambda entry: entry[0])
    seen: set[bytes] = set()  # digests: 16 bytes a sample, however long the names
    num_samples = 0
    try:
        for key, run in runs:
            files = _Files()
            for _, extension, member in run:
                files.add(extension, member)
            digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
            yield _make_sample(key, files, limits, is_repeated=digest in seen)
            seen.add(digest)
            num_samples += 1
    except BrokenTar as error:
        raise ShardError(shard, num_samples, str(error)) from None


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension, the key empty for a name that belongs to no sample."""
    if re.match(r"__[^/]*__($|/)", name):
        return "", ""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")


class _Files:
    """The files of one sample: the data of the first of each kind, and only the names of the others."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}  # extension -> data
        self.too_large: dict[str, int] = {}  # extension -> bytes
        self.repeated: list[str] = []
        self.names: list[str] = []
        self.has_links = False
        self.num_bytes = 0

    def add(self, extension: str, member: Member) -> None:
        self.names.append(f".{extension}")
        self.num_bytes += member.size
        self.has_links |= not member.is_file
        if not member.is_file or extension not in _KNOWN_EXTENSIONS:
            return
        if member.data is None:
            self.too_large[extension] = member.size
        elif extension in self.fields:
            self.repeated.append(extension)
        else:
            self.fields[extension] = member.data

    def __str__(self) -> str:
        more = f" and {len(self.names) - 8} more" if len(self.names) > 8 else ""
        return ", ".join(self.names[:8]) + more


class _MetadataError(Exception):
    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def _make_sample(
    key: str, files: _Files, limits: ShardLimits, *, is_repeated: bool
) -> ImageSample | Quarantined:
    images = [name for name in [*files.fields, *files.repeated] if name in IMAGE_EXTENSIONS]
    fault = _find_fault(files, images, limits, is_repeated=is_repeated)
    if fault is not None:
        error, message = fault
        return Quarantined(key, "shard", error, message, files.num_bytes)
    fields = files.fields
    caption = next((fields[name] for name in _CAPTION_EXTENSIONS if name in fields), None)
    try:
        return ImageSample(
            key=key,
            image=fields[images[0]],
            label=_parse_label(fields["cls"]) if "cls" in fields else None,
            caption=_parse_text(caption, "BadCaption") if caption is not None else None,
            meta=_parse_json(fields["json"]) if "json" in fields else None,
        )
    except _MetadataError as reason:
        return Quarantined(key, "metadata", reason.error, str(reason), files.num_bytes)


def _find_fault(
    files: _Files, images: list[str], limits: ShardLimits, *, is_repeated: bool
) -> tuple[str, str] | None:
    """Error class and message where the files are not those of one sample with one image."""
    if is_repeated:
        return "DuplicateKey", (
            f"files {files} come after another sample of this key: the key is used twice, or the files of "
            "a sample do not follow one another; pack the shard sorted by name, with unique keys"
        )
    for name, size in files.too_large.items():
        return "TooManyBytes", f".{name}: {size} bytes, more than max_member_bytes={limits.max_member_bytes}"
    if len(images) > 1:
        return "AmbiguousImage", f"{len(images)} images (.{', .'.join(images[:8])}), expected one"
    if files.repeated:
        return "DuplicateField", f"two files .{files.repeated[0]}, expected one"
    if not images:
        links = "; links do not count, pack what they point to" if files.has_links else ""
        return "NoImage", f"files {files}, none of them an image{links}"
    return None


def _parse_label(data: bytes) -> int:
    text = data.strip()
    if not re.fullmatch(rb"[+-]?[0-9]{1,10}", text) or not -(2**31) <= int(text) < 2**31:
        raise _MetadataError("BadLabel", f".cls holds {data[:40]!r}, expected an int32 in decimal")
    return int(text)


def _parse_text(data: bytes, error: str) -> str:
    try:
        return data.decode("utf-8-sig")  # a byte order mark is not part of the text
    except UnicodeDecodeError as reason:
        raise _MetadataError(error, f"not UTF-8: {reason.reason} at byte {reason.start}") from None


def _parse_json(data: bytes) -> str:
    text = _parse_text(data, "BadJson")
    try:
        json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise _MetadataError("BadJson", f".json does not parse: {reason}") from None
    return text
