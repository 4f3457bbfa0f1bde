"""A WebDataset shard, read once from front to back, as samples. Nothing is extracted, unpickled or sought.

A sample is a run of consecutive files that share their path up to the first dot of the base name (its key);
the rest of the name, lower-cased, says what the file holds. Every run ends as ImageSample or Quarantined, so
nothing in a shard is lost in silence, and a shard that cannot be read to its end raises ShardError. Where the
files of a sample do not follow one another, `regroup.py` reads the shard instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO

from tatok_pipe.images.fields import (
    MAX_KEY_CHARACTERS,
    MAX_METADATA_BYTES,
    MetadataError,
    digest_key,
    parse_json,
    parse_label,
    parse_text,
    shorten_key,
)
from tatok_pipe.images.tar import BrokenTar, Member, read_members
from tatok_pipe.options import option
from tatok_pipe.records import ImageSample, Quarantined

IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm",
)  # fmt: skip
# Of images that no decoder here reads. They count where a sample has no other image, so that it is told why.
UNREAD_EXTENSIONS = (
    "heic", "heif", "hif", "jp2", "j2k", "jpx", "jxl", "jxr", "psd", "exr", "hdr", "pfm", "pam", "svg", "ico", "tga",
    "dng", "cr2", "cr3", "nef", "arw", "qoi", "dds",
)  # fmt: skip
_CAPTION_EXTENSIONS = ("txt", "caption")
# Whatever else lies in a shard is passed over unread: .pyd and .pkl above all, which would be programs.
METADATA_EXTENSIONS = (*_CAPTION_EXTENSIONS, "cls", "json")
_NUM_SHOWN = 8


@dataclass(frozen=True)
class ShardLimits:
    """What is accepted of an image shard."""

    max_member_bytes: int = option(
        256 << 20,
        help="largest image, label, caption or JSON file (the last three: 16 MiB at most); larger is quarantined",
        unit="bytes",
    )
    max_members: int = option(
        1_000_000, help="most members of a tar, or rows of a Parquet file; a shard with more is refused"
    )
    max_shard_bytes: int = option(
        128 << 30, help="largest image shard, as stored or by the sizes it declares", unit="bytes"
    )
    max_page_bytes: int = option(
        512 << 20,
        help="largest page of a Parquet file, of which up to four times as much is held; a shard with a larger one "
        "is refused",
        unit="bytes",
    )
    require_end_marker: bool = option(
        True, help="refuse a shard without tar's end-of-archive marker: its last members may be missing"
    )

    def __post_init__(self) -> None:
        for name in ("max_member_bytes", "max_members", "max_shard_bytes", "max_page_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    def largest(self, extension: str) -> int:
        """The most bytes of a file with this extension."""
        if extension in METADATA_EXTENSIONS:
            return min(self.max_member_bytes, MAX_METADATA_BYTES)
        return self.max_member_bytes


DEFAULT_LIMITS = ShardLimits()


class ShardError(Exception):
    """A shard that cannot be read to its end. `num_samples` were read before that."""

    def __init__(
        self, shard: str, num_samples: int, reason: str, advice: str = "write or copy the shard again"
    ) -> None:
        super().__init__(f"{shard}: {reason}, after {num_samples} samples; {advice}")
        self.num_samples = num_samples
        self._arguments = (shard, num_samples, reason, advice)

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, int, str, str]]:
        """Errors cross processes: by their arguments, since the default would pass the message as the first."""
        return type(self), self._arguments


class InterleavedShard(ShardError):
    """The files of a sample do not follow one another: what was read is to be thrown away, and the shard read
    again with `regroup`."""


def read_samples(
    stream: BinaryIO, *, shard: str, limits: ShardLimits = DEFAULT_LIMITS
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a WebDataset tar, in order, holding one at a time; `shard` is its name in messages.

    The image has one of IMAGE_EXTENSIONS; `cls` is the label, an int32 in decimal; the caption is `txt`, or
    `caption` where there is no `txt`; `json` is kept as text. All but the image may be missing. Names are
    only names, so absolute paths and `..` do no harm; what in them is not UTF-8 appears as \\xNN. A name with
    no dot, or with nothing before it (macOS's `._x.jpg`), and WebDataset's `__meta__` names are of no sample.

    Quarantined, stage "shard": NoImage, UnsupportedFormat (no image but one of UNREAD_EXTENSIONS), AmbiguousImage,
    DuplicateField, DuplicateKey, LongKey, TooManyBytes; stage "metadata": BadLabel, BadCaption, BadJson; `num_bytes`
    counts all files of the sample. Raises ShardError; what came before it were whole samples. A key that comes again
    is DuplicateKey where both runs hold an image; else it is one sample whose files are apart, and InterleavedShard is
    raised. Errors of the stream itself pass through.
    """
    extensions = frozenset({*IMAGE_EXTENSIONS, *METADATA_EXTENSIONS})
    named = read_named(stream, limits, wanted=extensions.__contains__)
    seen: dict[
        bytes, bool
    ] = {}  # digest of the key, short however long the key is -> whether it had an image
    num_samples = 0
    try:
        for key, run in groupby(named, key=lambda entry: entry.key):
            files = Files()
            for entry in run:
                files.add(entry, limits)
            digest, has_image = digest_key(key), files.num_images > 0
            is_repeated = digest in seen
            if is_repeated and not (has_image and seen[digest]):
                raise InterleavedShard(
                    shard,
                    num_samples,
                    f"the files of sample {key!r} do not follow one another",
                    "read it with regroup=True, or pack it again sorted by name",
                )
            seen[digest] = has_image
            yield make_sample(key, files, files.image, limits, is_repeated=is_repeated)
            num_samples += 1
    except BrokenTar as error:
        raise ShardError(shard, num_samples, str(error), error.advice) from None


@dataclass(frozen=True)
class Named:
    """A member that belongs to a sample."""

    key: str
    extension: str  # lower case
    member: Member
    has_long_key: bool


def read_named(stream: BinaryIO, limits: ShardLimits, *, wanted: Callable[[str], bool]) -> Iterator[Named]:
    """The members that belong to samples, with the data of those whose extension is `wanted` and whose size
    is within the limits. Raises BrokenTar."""

    def is_wanted(name: str, size: int) -> bool:
        extension = _split_name(name)[1]
        return wanted(extension) and size <= limits.largest(extension)

    members = read_members(
        stream,
        wanted=is_wanted,
        max_members=limits.max_members,
        max_shard_bytes=limits.max_shard_bytes,
        require_end_marker=limits.require_end_marker,
    )
    for member in members:
        key, extension = _split_name(member.name)
        if key:
            short = shorten_key(key)
            yield Named(short, extension, member, short != key)


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension, the key empty for a name that belongs to no sample."""
    if re.match(r"__[^/]*__($|/)", name):
        return "", ""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")


class Files:
    """The files of one sample. However many there are, the first of each kind is kept, and a few names."""

    __slots__ = (
        "metadata", "image", "image_names", "num_images", "too_large", "repeated", "names", "num_files",
        "num_bytes", "has_links", "has_long_key", "unread",
    )  # fmt: skip

    def __init__(self) -> None:
        self.metadata: dict[str, bytes] = {}  # extension -> data
        self.image: bytes | None = None  # None also where it was not asked for
        self.image_names: tuple[str, ...] = ()
        self.num_images = 0
        self.too_large: tuple[str, int] | None = None  # extension, bytes
        self.repeated = ""  # extension
        self.names: tuple[str, ...] = ()
        self.num_files = 0
        self.num_bytes = 0
        self.has_links = False
        self.has_long_key = False
        self.unread = ""  # extension

    def add(self, entry: Named, limits: ShardLimits) -> None:
        extension, member = entry.extension, entry.member
        if len(self.names) < _NUM_SHOWN:
            self.names += (f".{extension[:40]}",)
        self.num_files += 1
        self.num_bytes += member.size
        self.has_long_key |= entry.has_long_key
        self.has_links |= not member.is_file
        if member.is_file and extension in UNREAD_EXTENSIONS:
            self.unread = self.unread or extension
        if not member.is_file or extension not in IMAGE_EXTENSIONS + METADATA_EXTENSIONS:
            return
        if member.size > limits.largest(extension):
            self.too_large = self.too_large or (extension, member.size)
        if extension in IMAGE_EXTENSIONS:
            self.num_images += 1
            if len(self.image_names) < _NUM_SHOWN:
                self.image_names += (f".{extension}",)
            self.image = member.data if self.num_images == 1 else None  # of several none is taken
        elif extension in self.metadata:
            self.repeated = self.repeated or extension
        else:
            self.metadata[extension] = member.data or b""

    def __str__(self) -> str:
        more = f" and {self.num_files - len(self.names)} more" if self.num_files > len(self.names) else ""
        return ", ".join(self.names) + more


def make_sample(
    key: str, files: Files, image: bytes | None, limits: ShardLimits, *, is_repeated: bool = False
) -> ImageSample | Quarantined:
    """What the files of one sample, and the data of its image, amount to."""
    fault = find_fault(files, limits, is_repeated=is_repeated)
    if fault is not None or image is None:
        error, message = fault or ("NoImage", f"files {files}, the image without data")
        return Quarantined(key, "shard", error, message, files.num_bytes)
    metadata = files.metadata
    caption = next((metadata[name] for name in _CAPTION_EXTENSIONS if name in metadata), None)
    try:
        return ImageSample(
            key=key,
            image=image,
            label=parse_label(metadata["cls"]) if "cls" in metadata else None,
            caption=parse_text(caption, "BadCaption") if caption is not None else None,
            meta=parse_json(metadata["json"]) if "json" in metadata else None,
        )
    except MetadataError as reason:
        return Quarantined(key, "metadata", reason.error, str(reason), files.num_bytes)


def find_fault(files: Files, limits: ShardLimits, *, is_repeated: bool = False) -> tuple[str, str] | None:
    """Error class and message where the files are not those of one sample with one image."""
    if files.has_long_key:
        return "LongKey", f"a key of more than {MAX_KEY_CHARACTERS} characters"
    if is_repeated:
        return "DuplicateKey", (
            f"files {files} come after another sample of this key, which has an image too; give every sample "
            "a key of its own"
        )
    if files.too_large is not None:
        extension, size = files.too_large
        limit = limits.largest(extension)
        name = "max_member_bytes=" if limit == limits.max_member_bytes else "the limit of metadata, "
        return "TooManyBytes", f".{extension}: {size} bytes, more than {name}{limit}"
    if files.num_images > 1:
        more = ", ..." if files.num_images > len(files.image_names) else ""
        shown = ", ".join(files.image_names) + more
        return "AmbiguousImage", f"{files.num_images} images ({shown}), expected one"
    if files.repeated:
        return "DuplicateField", f"two files .{files.repeated}, expected one"
    if not files.num_images and files.unread:
        return "UnsupportedFormat", f"files {files}: .{files.unread} is not read; convert it to JPEG or PNG"
    if not files.num_images:
        links = "; links do not count, pack what they point to" if files.has_links else ""
        return "NoImage", f"files {files}, none of them an image{links}"
    return None
