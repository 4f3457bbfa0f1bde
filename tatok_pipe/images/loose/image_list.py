"""The list of loose images: which are in which part, so that a part can be read like a shard.

The list is a Parquet file with a row group per part, kept beside what is made of the images. It fixes the parts: an
image stays in the part that it was first put into, and new ones make new parts. Its rows are the files of a folder, or
the rows of a manifest, which say by themselves what belongs to an image, or the tars within a tar, each a part.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import UserError

LIST_FILE = "_input.parquet"
LIST_SCHEMA = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("path", pa.binary(), nullable=False),  # names of files need not be UTF-8
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("class", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("offset", pa.int64()),
    ]
)
_SOURCE_KEY, _CLASSES_KEY, _PARTS_KEY = b"tatok.source", b"tatok.classes", b"tatok.num_parts"
_NAMES_KEY = b"tatok.class_names"  # only where there are some
# Times of many files as one hint: below any time of day, so that it counts as settled (see corpus_plan).
_HINT_RANGE = 10**18
_SETTLED_NS = 2_000_000_000


def show_path(path: str) -> str:
    """A path as text: what is not UTF-8 as \\xNN, as in tars."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def extension_of(path: str) -> str:
    """What stands behind the last dot of a name, in lower case."""
    return path.rpartition("/")[2].rpartition(".")[2].lower()


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a part: an image, or of a folder also what belongs to one. What a manifest says of an image stands
    behind its key, which files of a folder have none of."""

    path: str  # below the folder; of a manifest the address as it says it. What is not UTF-8 is in surrogates
    size_bytes: int | None  # None where nobody was asked, or nothing was there
    etag: str = ""  # the store's content tag; empty where it has none
    key: str | None = None
    label: int | None = None
    class_name: str | None = None
    caption: str | None = None
    offset: int | None = None  # of a tar within a tar: where it begins in that

    @property
    def sample(self) -> str:
        """What the files of one image have in common, and those of no other one."""
        return self.path.rpartition(".")[0] if self.key is None else self.key

    @property
    def extension(self) -> str:
        """In lower case, without the dot."""
        return extension_of(self.path)

    def url(self, source: str) -> str:
        """Where it is, given the folder, manifest or tar that has it; what is within a tar has its address."""
        if self.offset is not None:
            return source
        return (
            storage.join(source, self.path)
            if self.key is None
            else storage.resolve_address(self.path, source)
        )

    @property
    def identity(self) -> str:
        """All that the list says of it but the version of the file. A link that is signed anew is the same."""
        if self.key is None:
            return self.path
        path = storage.canonical_url(self.path) if "://" in self.path and "?" in self.path else self.path
        return json.dumps([path, self.key, self.label, self.class_name, self.caption])


@dataclass(frozen=True)
class ImageList:
    """What a list tells, with its bytes. `part_of` has the part of every image by `ListedFile.sample`; `classes` are
    the names that labels are told by, none where they are not."""

    data: bytes
    source: str  # canonical
    num_parts: int
    classes: tuple[str, ...]
    part_of: dict[str, int]


@dataclass(frozen=True)
class PartContent:
    """What a list tells of a part. `classes` are the names that labels are told by, `class_names` what the classes are
    called where labels are told by numbers; none where they are not."""

    files: list[ListedFile]
    classes: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def write_list(
    source: str,
    parts: Iterable[Sequence[ListedFile]],
    classes: Sequence[str],
    class_names: Sequence[str] = (),
) -> bytes:
    """The list of the folder or manifest with this canonical URL: `parts` by number, each its files in the order of
    reading, none where they are all gone; `classes` and `class_names` as in `PartContent`. The same bytes for the same
    parts."""
    sink = io.BytesIO()
    num_parts = 0
    with pq.ParquetWriter(sink, LIST_SCHEMA, compression="zstd") as writer:
        for number, files in enumerate(parts):
            columns = [
                [number] * len(files),
                [file.path.encode("utf-8", "surrogateescape") for file in files],
                [file.size_bytes for file in files],
                [file.etag for file in files],
                [file.key for file in files],
                [file.label for file in files],
                [file.class_name for file in files],
                [file.caption for file in files],
                [file.offset for file in files],
            ]
            if files:
                arrays = [
                    pa.array(column, field.type) for column, field in zip(columns, LIST_SCHEMA, strict=True)
                ]
                writer.write_table(pa.table(arrays, schema=LIST_SCHEMA), row_group_size=len(files))
            num_parts = number + 1
        writer.add_key_value_metadata(
            {
                _SOURCE_KEY: source.encode("utf-8", "surrogateescape"),
                _CLASSES_KEY: json.dumps(list(classes)).encode(),
                _PARTS_KEY: str(num_parts).encode(),
                **({_NAMES_KEY: json.dumps(list(class_names)).encode()} if class_names else {}),
            }
        )
    return sink.getvalue()


def load_list(url: str) -> ImageList | None:
    """The list at `url`; None where there is none. Raises UserError where something else is there."""
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = file.metadata.metadata or {}
        source = metadata[_SOURCE_KEY].decode("utf-8", "surrogateescape")
        classes, num_parts = tuple(json.loads(metadata[_CLASSES_KEY])), int(metadata[_PARTS_KEY])
        part_of: dict[str, int] = {}
        for batch in file.iter_batches(1 << 16, columns=["part", "path", "key"]):
            columns = (batch[name].to_pylist() for name in ("part", "path", "key"))
            for number, path, key in zip(*columns, strict=True):
                part_of[ListedFile(path.decode("utf-8", "surrogateescape"), None, key=key).sample] = number
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.redact(url)}: no list of images ({error}); remove it, or give another output.url"
        ) from error
    return ImageList(data, source, num_parts, classes, part_of)


def read_part(part: storage.ListedPart) -> PartContent:
    """Raises OSError where its list has no such part."""
    shown = storage.redact(str(part))
    with closing(storage.open_random_access(part.list_url, info=storage.file_info(part.list_url))) as stream:
        try:
            file = pq.ParquetFile(stream)
            metadata = file.metadata.metadata or {}
            classes, class_names = (_names_in(metadata, key) for key in (_CLASSES_KEY, _NAMES_KEY))
            group = _find_group(file.metadata, part.number)
            table = None if group is None else file.read_row_group(group, columns=LIST_SCHEMA.names)
            files = [] if table is None else list(_files(table))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise OSError(f"{shown}: its list cannot be read: {error}") from error
    if table is None:
        raise OSError(f"{shown}: not in the list of its source any more; the same command makes a new plan")
    return PartContent(files, classes, class_names)


def read_classes(list_url: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that the labels of a list are told by, and what they are called where that is by numbers."""
    metadata = pq.read_metadata(io.BytesIO(storage.read_bytes(list_url))).metadata or {}
    return _names_in(metadata, _CLASSES_KEY), _names_in(metadata, _NAMES_KEY)


def _names_in(metadata: Mapping[bytes, bytes], key: bytes) -> tuple[str, ...]:
    return tuple(json.loads(metadata.get(key, b"[]")))


def describe_part(
    files: Sequence[ListedFile], times_ns: Sequence[int | None], *, now_ns: int
) -> storage.SourceInfo:
    """What tells one version of a part from another: the sum of its sizes, with a digest of what the list says of its
    files and, where all of them are local, one hint for their times instead. `times_ns` are those: 0 where a file is
    not there, None where it is not local. Of a folder in a store without ETags the sizes are all that is known."""
    size = sum(file.size_bytes or 0 for file in files)
    if all(time_ns is not None for time_ns in times_ns):
        newest = max((time_ns or 0 for time_ns in times_ns), default=0)
        told = (f"{file.identity}\0{time_ns}" for file, time_ns in zip(files, times_ns, strict=True))
        hint = newest if newest > now_ns - _SETTLED_NS else int(_digest(told), 16) % _HINT_RANGE + 1
        return storage.SourceInfo(size, "", hint)
    if all(file.etag for file in files):
        return storage.SourceInfo(size, _digest(f"{file.identity}\0{file.etag}" for file in files))
    if any(file.key is None for file in files):
        return storage.SourceInfo(size)
    return storage.SourceInfo(
        size, _digest(f"{file.identity}\0{file.size_bytes}\0{file.etag}" for file in files)
    )


def _files(table: pa.Table) -> Iterator[ListedFile]:
    columns = (table.column(name).to_pylist() for name in table.column_names[1:])
    for path, *rest in zip(*columns, strict=True):
        yield ListedFile(path.decode("utf-8", "surrogateescape"), *rest)


def _digest(lines: Iterator[str]) -> str:
    hasher = hashlib.sha256()
    for line in lines:
        hasher.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return hasher.hexdigest()[:32]


def _find_group(metadata: pq.FileMetaData, number: int) -> int | None:
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(0).statistics
        if statistics is not None and statistics.min == number:
            return group
    return None
