"""The rows of a manifest, a table of images by their addresses: what each says, or which one cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import MAX_NAMES, are_names, names_of_metadata
from tatok_pipe.images.fields import (
    CAPTION_NAMES,
    LABEL_NAMES,
    WITHOUT_CAPTIONS,
    WITHOUT_LABELS,
    MetadataError,
    is_label_like,
    read_caption,
    read_key,
    read_label,
)
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.loose.folder import is_image
from tatok_pipe.images.loose.image_list import ListedFile
from tatok_pipe.images.notices import other_labels
from tatok_pipe.images.parquet import values as values
from tatok_pipe.images.parquet.columns import (
    CAPTION_TYPES,
    KEY_COLUMNS,
    KEY_TYPES,
    LABEL_TYPES,
    NamedColumns,
    Test,
    are_tokens,
    has_images,
)
from tatok_pipe.images.parquet.samples import read_columns, read_schema
from tatok_pipe.images.shard_errors import ShardError

JSON_LINES_SUFFIX = ".jsonl"
# In order of preference: what has both `image_url` and `url` has the address of a page in the second.
ADDRESS_COLUMNS = ("image_url", "url", "file_name")
CLASS_COLUMNS = (*LABEL_NAMES, "class_name")
_MAX_SHOWN = 12


def is_manifest_schema(schema: pa.Schema) -> bool:
    """Whether a Parquet file with these columns is a manifest: it has addresses, and no column that holds images."""
    names = {name.lower() for name in schema.names}
    return not (are_tokens(schema) or has_images(schema)) and not names.isdisjoint(ADDRESS_COLUMNS)


@dataclass(frozen=True)
class Manifest:
    """What is said of images, in the order of the rows."""

    rows: list[ListedFile]  # without size and ETag
    classes: tuple[str, ...]  # where labels are names
    class_names: tuple[str, ...]  # what classes are called, where labels are numbers and that is told
    has_numbers: bool  # whether a label is one
    note: str  # what a user ought to know


class _BadRow(Exception):
    """A value that cannot be used: the number of its row, from 0 on, and why."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"row {number + 1}: {reason}")


def read_manifest(url: str, limits: ShardLimits, *, base: str = "", prefix: str = "") -> Manifest:
    """The manifest at `url`. Addresses, and so keys, are relative to the folder of `base`, where it is given, and
    `prefix` leads from there to that of the manifest. Raises UserError for a manifest that cannot be used, with its
    row."""
    shown = storage.redact(url)
    used = {*ADDRESS_COLUMNS, *KEY_COLUMNS}
    used |= {*CLASS_COLUMNS} if limits.wants("label") else set()
    used |= {*CAPTION_NAMES} if limits.wants("caption") else set()
    try:
        if storage.file_name(url).endswith(JSON_LINES_SUFFIX):
            table, names = _read_json_lines(storage.read_bytes(url), used)
        else:
            table, names = _read_parquet(url, used)
        return _read_rows(table, names, base or url, limits, prefix)
    except (_BadRow, MetadataError) as error:
        raise UserError(f"{shown}: {error}") from None
    except ShardError as error:
        raise UserError(str(error)) from None


def _read_json_lines(data: bytes, used: Set[str]) -> tuple[pa.Table, list[str]]:
    """The columns with `used` names, and the names of all. Raises MetadataError."""
    columns: dict[str, list[Any]] = {}
    num_rows = 0
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MetadataError(
                "BadJson", f"line {number} is no JSON: {error}", "write one object a line"
            ) from None
        if not isinstance(row, dict):
            raise MetadataError(
                "BadJson",
                f"line {number} holds {type(row).__name__}, expected an object",
                "write one object a line",
            )
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * num_rows
            columns[name].append(value)
        num_rows += 1
        for column in columns.values():
            if len(column) < num_rows:
                column.append(None)
    table = pa.table({name: _to_array(name, columns[name]) for name in columns if name.lower() in used})
    return table, list(columns)


def _to_array(name: str, column: Sequence[Any]) -> pa.Array:
    """Raises MetadataError."""
    try:
        return pa.array(column)
    except (pa.ArrowException, OverflowError, UnicodeError):
        kinds: dict[str, int] = {}
        for number, value in enumerate(column, 1):
            if value is not None:
                kinds.setdefault(type(value).__name__, number)
        told = ", ".join(f"{kind} in row {number}" for kind, number in kinds.items())
        raise MetadataError(
            "BadColumn",
            f"column {name} holds values that are no column: first {told}",
            f"write values of one kind{_or_without(name)}",
        ) from None


def _read_parquet(url: str, used: Set[str]) -> tuple[pa.Table, list[str]]:
    with closing(storage.open_random_access(url, info=storage.file_info(url))) as file:
        schema = read_schema(file)
        names = schema.names if schema is not None else []
        if schema is not None and has_images(schema):  # others that were given are manifests
            raise MetadataError(
                "NoImage", "holds images, not addresses of some", "give it apart from manifests"
            )
        wanted = [name for name in names if name.lower() in used]
        return read_columns(file, wanted, shard=storage.redact(url)), names


def _read_rows(
    table: pa.Table, names: Sequence[str], base: str, limits: ShardLimits, prefix: str
) -> Manifest:
    """Raises _BadRow, MetadataError."""
    known = NamedColumns(table.schema)
    column = next((known.by_name[name] for name in ADDRESS_COLUMNS if name in known.by_name), "")
    if not names:
        raise MetadataError("NoImage", "there is nothing in it", "write a row an image, with its url")
    if not column:
        more = ", ..." if len(names) > _MAX_SHOWN else ""
        raise MetadataError(
            "NoImage",
            f"none of the columns {', '.join(ADDRESS_COLUMNS)}, only {', '.join(names[:_MAX_SHOWN])}{more}",
            "call the column with the addresses of the images url",
        )
    if not table.num_rows:
        raise MetadataError("NoImage", "there is no row in it", "write a row an image, with its url")
    if not values.is_text(known.types[column]):
        raise MetadataError(
            "NoImage", f"column {column} is {known.types[column]}, expected text", "write addresses"
        )
    addresses = [
        prefix + address.removeprefix("./") if prefix and not storage.names_its_place(address) else address
        for address in _addresses(table, column)
    ]
    labels, classes = [None] * len(addresses), ()
    label_column = _choose(
        known, CLASS_COLUMNS, LABEL_TYPES, limits, "label", "labels: integers, or names of classes"
    )
    if label_column:
        labels, classes = _labels(table, label_column)
    captions: list[str | None] = [None] * len(addresses)
    caption = _choose(known, CAPTION_NAMES, CAPTION_TYPES, limits, "caption", "text")
    if caption:
        captions = [
            _check(number, read_caption, value, f"column {caption}")
            for number, value in enumerate(_values(table, caption))
        ]
    keys = _keys(
        table, _choose(known, KEY_COLUMNS, KEY_TYPES, limits, "key", "text or integers"), addresses, base
    )
    rows = [
        ListedFile(
            address,
            None,
            key=key,
            label=None if isinstance(label, str) else label,
            class_name=label if isinstance(label, str) else None,
            caption=caption,
        )
        for address, key, label, caption in zip(addresses, keys, labels, captions, strict=True)
    ]
    others = (
        [name for name in names if name != label_column and is_label_like(name)]
        if limits.wants("label")
        else []
    )
    note = other_labels(label_column, ", ".join(others[:_MAX_SHOWN])) if others else ""
    called = () if classes or not label_column else names_of_metadata(table.schema.metadata, label_column)
    return Manifest(rows, classes, called, any(row.label is not None for row in rows), note)


def _choose(
    known: NamedColumns,
    wanted: tuple[str, ...],
    tests: tuple[Test, ...],
    limits: ShardLimits,
    part: str,
    expected: str,
) -> str:
    """The column of a part of a sample; empty where there is none. Raises MetadataError where there are only others."""
    if not limits.wants(part):
        return ""
    chosen = known.choose(wanted, tests)
    others = [known.by_name[name] for name in wanted if name in known.by_name]
    if not chosen and others:
        advice = f"drop the column{_or_without(others[0])}"
        raise MetadataError(
            "BadColumn", f"column {others[0]} is {known.types[others[0]]}, expected {expected}", advice
        )
    return chosen


def _or_without(column: str) -> str:
    without = {
        **dict.fromkeys(CLASS_COLUMNS, WITHOUT_LABELS),
        **dict.fromkeys(CAPTION_NAMES, WITHOUT_CAPTIONS),
    }
    return f", or {without[column.lower()]}" if column.lower() in without else ""


def _values(table: pa.Table, column: str) -> Iterator[Any]:
    read = values.to_keys if column.lower() in KEY_COLUMNS else values.to_python
    return (value for chunk in table.column(column).chunks for value in read(chunk))


def _check(number: int, read: Any, value: Any, name: str) -> Any:
    try:
        return read(value, name)
    except MetadataError as error:
        raise _BadRow(number, str(error)) from None


def _addresses(table: pa.Table, column: str) -> Iterator[str]:
    for number, value in enumerate(_values(table, column)):
        text = (value or b"").decode("utf-8", "surrogateescape").strip()
        if not text:
            raise _BadRow(
                number, f"column {column} is {'null' if value is None else 'empty'}, expected an address"
            )
        yield text


def _labels(table: pa.Table, column: str) -> tuple[list[Any], tuple[str, ...]]:
    """The labels: numbers, or names with all of them sorted. Raises _BadRow."""
    found: list[Any] = []
    first_number = first_name = -1
    for number, value in enumerate(_values(table, column)):
        try:
            label: Any = read_label(value, f"column {column}")
        except MetadataError as error:
            label = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""
            if not label.strip():
                raise _BadRow(number, str(error)) from None
        if isinstance(label, str) and first_name < 0:
            first_name = number
        elif isinstance(label, int) and first_number < 0:
            first_number = number
        if min(first_name, first_number) >= 0:
            raise _BadRow(
                number,
                f"column {column} holds {label!r}, and row {min(first_name, first_number) + 1} "
                f"{found[min(first_name, first_number)]!r}: expected numbers of classes, or names, not both; write one "
                f"kind, or {WITHOUT_LABELS}",
            )
        found.append(label)
    names = sorted({label for label in found if label is not None}) if first_name >= 0 else []
    if names and not are_names(names):
        raise MetadataError(
            "BadLabel",
            f"column {column} holds {len(names)} names of classes, expected at most {MAX_NAMES}, in one line each",
            f"write numbers, or {WITHOUT_LABELS}",
        )
    return found, tuple(names)


def _keys(table: pa.Table, column: str, addresses: Sequence[str], url: str) -> list[str]:
    """Raises _BadRow for one that comes twice."""
    folder = storage.canonical_url(storage.resolve_address("x", url))[:-1]
    given: Iterable[Any] = _values(table, column) if column else [None] * len(addresses)
    seen: dict[str, int] = {}
    for number, (value, address) in enumerate(zip(given, addresses, strict=True)):
        key = _check(number, read_key, value, f"column {column}") or _default_key(address, folder)
        if (other := seen.setdefault(key, number)) != number:
            advice = (
                "give every row a key of its own"
                if column
                else "give a column key that has another for every row"
            )
            raise _BadRow(number, f"has the key {key!r}, as row {other + 1} has; {advice}")
    return list(seen)


def _default_key(address: str, folder: str) -> str:
    """The path of an image below the folder of the manifest; of one elsewhere its host and path. Without the extension
    of an image, and without secrets."""
    name = address.removeprefix("./")
    if storage.names_its_place(address):
        is_plain = "://" in address and not any(sign in address for sign in "?@#%")
        name = address if is_plain and not address.startswith("file:") else storage.canonical_url(address)
        name = name.removeprefix(folder)
        name = name.partition("://")[2] or name.lstrip("/")
    return name.rpartition(".")[0] if "." in name.rpartition("/")[2] and is_image(name) else name
