"""The list of a folder of loose files: which files are in which part of it, so that a part can be read like a shard.

The list is a Parquet file with a row group per part, kept beside what is made of the folder. It fixes the parts: a file
stays in the part that it was first put into, and new files make new parts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
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
        pa.field("path", pa.binary(), nullable=False),  # below the folder; names of files need not be UTF-8
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),  # the store's content tag; empty where it has none
    ]
)
_FOLDER_KEY, _CLASSES_KEY, _PARTS_KEY = b"tatok.folder", b"tatok.classes", b"tatok.num_parts"
# Times of many files as one hint: below any time of day, so that it counts as settled (see corpus_plan).
_HINT_RANGE = 10**18
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a part."""

    path: str  # below the folder; what is not UTF-8 in surrogates, as Python has names of files
    size_bytes: int
    etag: str = ""


@dataclass(frozen=True)
class FolderList:
    """What a list tells, with its bytes. `part_of` has the part of every file by path; `classes` are the names of the
    folders that say what the images show, none where they do not."""

    data: bytes
    folder: str  # canonical
    num_parts: int
    classes: tuple[str, ...]
    part_of: dict[str, int]


def write_list(folder: str, parts: Iterable[Sequence[ListedFile]], classes: Sequence[str]) -> bytes:
    """The list of the folder with this canonical URL: `parts` by number, each its files in the order of reading, none
    where they are all gone. The same bytes for the same parts."""
    sink = io.BytesIO()
    num_parts = 0
    with pq.ParquetWriter(sink, LIST_SCHEMA, compression="zstd") as writer:
        for number, files in enumerate(parts):
            paths = [file.path.encode("utf-8", "surrogateescape") for file in files]
            columns = [
                pa.array([number] * len(files), pa.int32()),
                pa.array(paths, pa.binary()),
                pa.array([file.size_bytes for file in files], pa.int64()),
                pa.array([file.etag for file in files], pa.string()),
            ]
            if files:
                writer.write_table(pa.table(columns, schema=LIST_SCHEMA), row_group_size=len(files))
            num_parts = number + 1
        writer.add_key_value_metadata(
            {
                _FOLDER_KEY: folder.encode("utf-8", "surrogateescape"),
                _CLASSES_KEY: json.dumps(list(classes)).encode(),
                _PARTS_KEY: str(num_parts).encode(),
            }
        )
    return sink.getvalue()


def load_list(url: str) -> FolderList | None:
    """The list at `url`; None where there is none. Raises UserError where something else is there."""
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = file.metadata.metadata or {}
        folder = metadata[_FOLDER_KEY].decode("utf-8", "surrogateescape")
        classes, num_parts = tuple(json.loads(metadata[_CLASSES_KEY])), int(metadata[_PARTS_KEY])
        part_of: dict[str, int] = {}
        for batch in file.iter_batches(1 << 16, columns=["part", "path"]):
            for number, path in zip(batch["part"].to_pylist(), batch["path"].to_pylist(), strict=True):
                part_of[path.decode("utf-8", "surrogateescape")] = number
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.redact(url)}: no list of a folder's files ({error}); remove it, or give another output.url"
        ) from error
    return FolderList(data, folder, num_parts, classes, part_of)


def read_part(part: storage.FolderPart) -> tuple[list[ListedFile], tuple[str, ...]]:
    """The files of a part, and the classes of the folder. Raises OSError where its list has no such part."""
    shown = storage.redact(str(part))
    with closing(storage.open_random_access(part.list_url, info=storage.file_info(part.list_url))) as stream:
        try:
            file = pq.ParquetFile(stream)
            metadata = file.metadata.metadata or {}
            classes = tuple(json.loads(metadata[_CLASSES_KEY]))
            group = _find_group(file.metadata, part.number)
            table = None if group is None else file.read_row_group(group)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise OSError(f"{shown}: its list cannot be read: {error}") from error
    if table is None:
        raise OSError(f"{shown}: not in the list of the folder any more; the same command makes a new plan")
    return list(_files(table)), classes


def read_classes(list_url: str) -> tuple[str, ...]:
    """The classes of a folder by its list."""
    metadata = pq.read_metadata(io.BytesIO(storage.read_bytes(list_url))).metadata or {}
    return tuple(json.loads(metadata.get(_CLASSES_KEY, b"[]")))


def describe_part(files: Sequence[ListedFile], times_ns: Sequence[int], *, now_ns: int) -> storage.SourceInfo:
    """What tells one version of a part from another: the sum of its sizes, a digest of its ETags where every file has
    one, and one hint for the times of its local files; `times_ns` are those, or empty."""
    size = sum(file.size_bytes for file in files)
    if files and all(file.etag for file in files):
        return storage.SourceInfo(size, _digest(f"{file.path}\0{file.etag}" for file in files))
    if not times_ns:
        return storage.SourceInfo(size)
    newest = max(times_ns)
    told = (f"{file.path}\0{time_ns}" for file, time_ns in zip(files, times_ns, strict=True))
    hint = newest if newest > now_ns - _SETTLED_NS else int(_digest(told), 16) % _HINT_RANGE + 1
    return storage.SourceInfo(size, "", hint)


def _files(table: pa.Table) -> Iterator[ListedFile]:
    columns = (table.column(name).to_pylist() for name in ("path", "size_bytes", "etag"))
    for path, size_bytes, etag in zip(*columns, strict=True):
        yield ListedFile(path.decode("utf-8", "surrogateescape"), size_bytes, etag)


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
