"""The files of one sample of a tar, and what they amount to: an image with what belongs to it, or one refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from tatok_pipe.images import encoded_text
from tatok_pipe.images.fields import (
    MAX_KEY_CHARACTERS,
    MetadataError,
    choose_label,
    is_label_like,
    label_of_json,
    parse_text,
    take_json,
)
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.limits import CAPTION_EXTENSIONS, LABEL_EXTENSIONS, ShardLimits
from tatok_pipe.images.notices import GAP, Notices, other_labels
from tatok_pipe.images.webdataset.tar import Member
from tatok_pipe.records import ImageSample, Quarantined

_ARCHIVE = re.compile(r"(.*\.)?(tar|tgz|zip|7z|rar|parquet|tfrecords?|tar\.[a-z0-9]+)")
_NUM_SHOWN = 8

_NOTICE_DOTS = (
    "a key ends at the first dot of a name, so files like KEY.more.jpg are no images of their own and passed over; "
    "where they should be, leave no other dot in a name than that before its extension"
)


@dataclass(frozen=True)
class Named:
    """A member that belongs to a sample."""

    key: str
    extension: str  # lower case
    member: Member
    has_long_key: bool


class Files:
    """The files of one sample. However many there are, the first of each kind is kept, and a few names."""

    __slots__ = (
        "metadata", "image", "image_names", "num_images", "too_large", "repeated", "names", "num_files",
        "num_bytes", "has_links", "has_long_key", "unread", "dotted", "other_labels",
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
        self.unread = ""  # an extension of images that no decoder here reads
        self.dotted = ""  # an extension like 2021.png, which is no image's
        self.other_labels: tuple[str, ...] = ()  # extensions like a label's that are not read

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
        if extension not in limits.extensions:
            if extension.rpartition(".")[2] in IMAGE_EXTENSIONS and extension not in IMAGE_EXTENSIONS:
                self.dotted = self.dotted or extension
            elif limits.wants("label") and is_label_like(extension.removesuffix(".txt")):
                self.other_labels = (*self.other_labels, extension)[:_NUM_SHOWN]
            return
        if not member.is_file:
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
    key: str,
    files: Files,
    image: bytes | None,
    limits: ShardLimits,
    notices: Notices,
    *,
    is_repeated: bool = False,
) -> ImageSample | Quarantined:
    """What the files of one sample, and the data of its image, amount to."""
    fault = find_fault(files, limits, is_repeated=is_repeated)
    if fault is not None or image is None:
        error, message = fault or ("NoImage", f"files {files}, the image without data")
        return Quarantined(key, "shard", error, message, files.num_bytes)
    try:
        return _read_fields(key, files, image, limits, notices)
    except MetadataError as reason:
        return Quarantined(key, "metadata", reason.error, str(reason), files.num_bytes)


def group_samples(
    named: Iterable[Named], limits: ShardLimits, notices: Notices
) -> Iterator[ImageSample | Quarantined]:
    """The samples of members that come sample by sample, each key once."""
    for key, run in groupby(named, key=lambda entry: entry.key):
        files = Files()
        for entry in run:
            files.add(entry, limits)
        yield make_sample(key, files, files.image, limits, notices)


def _read_fields(key: str, files: Files, image: bytes, limits: ShardLimits, notices: Notices) -> ImageSample:
    """A sample with one image. Raises MetadataError."""
    metadata = files.metadata
    labels = [(f".{name}", metadata[name]) for name in LABEL_EXTENSIONS if name in metadata]
    texts = [metadata[name] for name in CAPTION_EXTENSIONS if name in metadata]
    label = choose_label(labels)
    caption = parse_text(texts[0], "BadCaption") if texts else None
    meta = take_json(metadata["json"], key, notices) if "json" in metadata else None
    if labels and label is None:
        notices.add(GAP, key)
    if meta is not None:
        if not labels and limits.wants("label"):
            label = label_of_json(meta, key, notices)
        if not texts and limits.wants("caption"):
            caption = meta.caption()
    decoded = encoded_text.decode_text(image)
    if decoded is not None:
        notices.add(encoded_text.NOTICE, key)
    if files.dotted:
        notices.add(_NOTICE_DOTS, f"{key}.{files.dotted}")
    others = [f".{name}" for name in files.other_labels] + [name for name, _ in labels[1:]]
    if others:
        taken = labels[0][0] if labels else ""
        notices.add(other_labels(taken, ", ".join(sorted(others))), key)
    return ImageSample(key, decoded or image, label, caption, None if meta is None else meta.text)


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
        return "NoImage", f"files {files}, none of them an image{_explain_no_image(files)}"
    return None


def _explain_no_image(files: Files) -> str:
    """The likely cause, and what to do."""
    if files.has_links:
        return "; links do not count, pack what they point to"
    if files.dotted:
        return (
            f": a key ends at the first dot of a name, so .{files.dotted} is no image; leave no other dot in a name "
            "than that before its extension"
        )
    archive = next((name for name in files.names if _ARCHIVE.fullmatch(name[1:])), "")
    if archive:
        return f": {archive} is an archive; unpack it, and give what was in it as shards of their own"
    return ""
