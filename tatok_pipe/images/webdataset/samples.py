"""A WebDataset shard, read once from front to back, as samples. Nothing is extracted, unpickled or sought.

A sample is a run of consecutive files that share their path up to the first dot of the base name (its key);
the rest of the name, lower-cased, says what the file holds. Every run ends as ImageSample or Quarantined, so
nothing in a shard is lost in silence, and a shard that cannot be read to its end raises ShardError. Where the
files of a sample do not follow one another, `regroup.py` reads the shard instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import BinaryIO

from tatok_pipe.images.fields import digest_key, shorten_key
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.notices import EMPTY, Notices
from tatok_pipe.images.shard_errors import InterleavedShard, LastingShardError, ShardError, UnusableShard
from tatok_pipe.images.webdataset.sample_files import Files, Named, make_sample
from tatok_pipe.images.webdataset.tar import BrokenTar, Member, NotTar, read_members
from tatok_pipe.records import ImageSample, Quarantined

_NOTICE_NO_SAMPLE = "files without an extension are of no sample and passed over; a name is KEY.EXTENSION"


def read_samples(
    stream: BinaryIO,
    *,
    shard: str,
    limits: ShardLimits = DEFAULT_LIMITS,
    notices: Notices | None = None,
) -> Iterator[ImageSample | Quarantined]:
    """The samples of a WebDataset tar, in order, holding one at a time; `shard` is its name in messages.

    The image has one of IMAGE_EXTENSIONS; the label is `cls` or another of LABEL_NAMES, also with `.txt` behind it,
    as `fields.read_label` reads it; the caption is `txt`, or `caption` or `text` where there is none before it;
    `json` is kept as text, and says label and caption where no file does. All but the image may be missing, and
    `limits.ignore` passes over the rest. An image in base64 is decoded. Names are only names, so absolute paths and
    `..` do no harm; what in them is not UTF-8 appears as \\xNN. A name with no dot, or with nothing before it
    (macOS's `._x.jpg`), and WebDataset's `__meta__` names are of no sample. What a user ought to know of all this
    goes to `notices`.

    Quarantined, stage "shard": NoImage, UnsupportedFormat (no image but one of UNREAD_EXTENSIONS), AmbiguousImage,
    DuplicateField, DuplicateKey, LongKey, TooManyBytes; stage "metadata": BadLabel, BadCaption, BadJson; `num_bytes`
    counts all files of the sample. Raises ShardError; what came before it were whole samples; UnusableShard where
    there are files and no sample. A key that comes again is DuplicateKey where both runs hold an image; else it is one
    sample whose files are apart, and InterleavedShard is raised. Errors of the stream itself pass through.
    """
    notices = Notices() if notices is None else notices
    named = read_named(stream, limits, notices, wanted=limits.extensions.__contains__)
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
            yield make_sample(key, files, files.image, limits, notices, is_repeated=is_repeated)
            num_samples += 1
    except BrokenTar as error:
        raise shard_error(shard, num_samples, error) from None
    check_samples(num_samples, shard, notices)


def shard_error(shard: str, num_samples: int, error: BrokenTar) -> ShardError:
    """What a tar's reader found, with the name of the shard."""
    kind = LastingShardError if isinstance(error, NotTar) else ShardError
    return kind(shard, num_samples, str(error), error.advice)


def check_samples(num_samples: int, shard: str, notices: Notices) -> None:
    """Raise UnusableShard where all files of a tar are of no sample."""
    num_files = notices.count(_NOTICE_NO_SAMPLE)
    if not num_samples and num_files:
        raise UnusableShard(
            shard,
            0,
            f"none of {num_files} files has an extension, as {notices.example(_NOTICE_NO_SAMPLE)!r} has none",
            "name the files KEY.EXTENSION, as in 0001.jpg and 0001.cls",
        )
    if not num_samples:
        notices.add(EMPTY, "")


def read_named(
    stream: BinaryIO, limits: ShardLimits, notices: Notices, *, wanted: Callable[[str], bool]
) -> Iterator[Named]:
    """The members of a tar that belong to samples, with the data of those whose extension is `wanted` and whose size
    is within the limits. Raises BrokenTar."""
    members = read_members(
        stream,
        wanted=wants_member(limits, wanted),
        max_members=limits.max_members,
        max_shard_bytes=limits.max_shard_bytes,
        require_end_marker=limits.require_end_marker,
    )
    return name_members(members, notices)


def wants_member(limits: ShardLimits, wanted: Callable[[str], bool]) -> Callable[[str, int], bool]:
    """Whether the data of a member (name, bytes) are wanted: its extension is `wanted`, its size within the limits."""

    def is_wanted(name: str, size: int) -> bool:
        extension = _split_name(name)[1]
        return wanted(extension) and size <= limits.largest(extension)

    return is_wanted


def name_members(members: Iterable[Member], notices: Notices) -> Iterator[Named]:
    """Those that belong to samples."""
    for member in members:
        key, extension = _split_name(member.name)
        if key:
            short = shorten_key(key)
            yield Named(short, extension, member, short != key)
        elif not _is_hidden(member.name):
            notices.add(_NOTICE_NO_SAMPLE, member.name)


def key_of(name: str) -> str:
    """The key of the sample that a member is of; empty where it is of none."""
    return _split_name(name)[0]


def _is_hidden(name: str) -> bool:
    """Whether a file is of no sample by its name alone: macOS's and WebDataset's own."""
    return name.rpartition("/")[2].startswith(".") or re.match(r"__[^/]*__($|/)", name) is not None


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension, the key empty for a name that belongs to no sample."""
    if re.match(r"__[^/]*__($|/)", name):
        return "", ""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else ("", "")
