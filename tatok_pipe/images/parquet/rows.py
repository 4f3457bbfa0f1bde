"""Rows of Parquet as samples, and what a column turns out to be when its values are seen."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from tatok_pipe.images import encoded_text
from tatok_pipe.images.fields import (
    MAX_KEY_CHARACTERS,
    Json,
    MetadataError,
    digest_key,
    label_of_json,
    read_caption,
    read_key,
    read_label,
    shorten_key,
    take_json,
)
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import EMPTY, Notices
from tatok_pipe.images.parquet.columns import Columns, Row, no_images
from tatok_pipe.images.parquet.values import storage_type
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.records import ImageSample, Quarantined

_PATHS = "embed the images before the file is written (Hugging Face datasets: embed_table_storage; push_to_hub does it)"


class RowReader:
    """The rows of one file, in order.

    Where a type leaves open what a column holds, its first value tells: a class name where a label was expected is
    no bad row but a column of another kind, and the file is refused. What comes later is judged row by row.
    """

    def __init__(
        self, schema: pa.Schema, columns: Columns, *, shard: str, limits: ShardLimits, notices: Notices
    ) -> None:
        self._schema = schema
        self._columns = columns
        self._shard = shard
        self._limits = limits
        self._notices = notices
        self._num_rows = self._num_bad_labels = 0
        self._seen: set[bytes] = set()  # digests of keys
        self._known: set[str] = set()  # columns that a value was taken of

    def read(self, row: Row) -> ImageSample | Quarantined:
        """Raises UnusableShard."""
        number = f"{self._num_rows:08d}"
        self._num_rows += 1
        num_bytes = sum(_size(value) for value in (row.image, row.caption, row.meta))
        try:
            given = read_key(row.key, self._columns.show(self._columns.key)) if self._columns.key else None
            self._know(self._columns.key, given)
        except MetadataError as reason:
            self._check_first(self._columns.key, reason, row.key)
            return Quarantined(number, "shard", reason.error, str(reason), num_bytes)
        key = number if given is None else given
        short, digest = shorten_key(key), digest_key(key)
        is_repeated = digest in self._seen
        self._seen.add(digest)
        if short != key:
            fault = "LongKey", f"a key of more than {MAX_KEY_CHARACTERS} characters"
        elif is_repeated:
            fault = "DuplicateKey", "another row before it has this key; give every row a key of its own"
        else:
            fault = self._find_fault(row)
        if fault is not None or row.image is None:
            return Quarantined(short, "shard", *(fault or ("NoImage", "the image is null")), num_bytes)
        try:
            image = self._read_image(key, row.image)
            return self._read_fields(key, image, row)
        except MetadataError as reason:
            stage = "shard" if reason.error == "NoImage" else "metadata"
            return Quarantined(key, stage, reason.error, str(reason), num_bytes)

    def close(self) -> None:
        """Tell what only the whole file shows."""
        label = self._columns.label
        if not self._num_rows:
            self._notices.add(EMPTY, "")
        elif label and label not in self._known and not self._num_bad_labels:
            self._notices.add(f"{self._columns.show(label)}: no row has a label there", "")

    def _know(self, column: str, value: Any) -> None:
        if value is not None:
            self._known.add(column)

    def _check_first(self, column: str, reason: MetadataError, value: Any) -> None:
        """Raise UnusableShard where it was the first value of a column that a type does not vouch for."""
        kind = storage_type(self._columns.types[column])
        if column not in self._known and not pa.types.is_integer(kind) and value not in (b"", ""):
            advice = reason.advice or "drop the column, or write it as the type that is expected"
            raise UnusableShard(self._shard, 0, reason.reason, advice)

    def _find_fault(self, row: Row) -> tuple[str, str] | None:
        if row.image is None and row.path is not None:
            return "NoImage", f"no bytes, only the path {row.path[:200]!r}; {_PATHS}"
        if row.image is None:
            return "NoImage", "the image is null"
        limits = self._limits
        for name, value, largest in (
            ("image", row.image, limits.max_member_bytes),
            ("caption", row.caption, limits.largest("txt")),
            ("meta", row.meta, limits.largest("txt")),
        ):
            if _size(value) > largest:
                limit = (
                    "max_member_bytes=" if largest == limits.max_member_bytes else "the limit of metadata, "
                )
                return "TooManyBytes", f"{name}: {_size(value)} bytes, more than {limit}{largest}"
        return None

    def _read_image(self, key: str, data: bytes) -> bytes:
        """The encoded image. Raises MetadataError NoImage; UnusableShard."""
        decoded = encoded_text.decode_text(data)
        column = self._columns.image
        if decoded is not None:
            self._notices.add(encoded_text.NOTICE, key)
            self._known.add(column)
            return decoded
        if not self._columns.is_text:
            return data
        found = f"holds {data[:60].decode('utf-8', 'backslashreplace')!r}, neither base64 nor a data: URI"
        if column not in self._known:
            raise no_images(self._schema, self._shard, f"; {self._columns.show(column)} {found}")
        raise MetadataError("NoImage", f"{self._columns.show(column)} {found}", _PATHS)

    def _read_fields(self, key: str, image: bytes, row: Row) -> ImageSample:
        """Raises MetadataError, UnusableShard."""
        columns = self._columns
        label, caption = None, None
        if columns.label:
            try:
                label = read_label(row.label, columns.show(columns.label))
            except MetadataError as reason:
                self._check_first(columns.label, reason, row.label)
                self._num_bad_labels += 1
                raise
            self._know(columns.label, label)
        if columns.caption:
            try:
                caption = read_caption(row.caption, columns.show(columns.caption))
            except MetadataError as reason:
                if isinstance(row.caption, list):
                    self._check_first(columns.caption, reason, row.caption)
                raise
            self._know(columns.caption, caption)
        meta = self._read_meta(key, row.meta)
        if meta is not None:
            if not columns.label and self._limits.wants("label"):
                label = label_of_json(meta, key, self._notices)
            if not columns.caption and self._limits.wants("caption"):
                caption = meta.caption()
        return ImageSample(key, image, label, caption, None if meta is None else meta.text)

    def _read_meta(self, key: str, value: Any) -> Json | None:
        if value is None:
            return None
        column = self._columns.meta
        if not isinstance(value, bytes):  # a struct, which Python's writer makes JSON of
            return take_json(json.dumps(value, ensure_ascii=False).encode(), key, self._notices)
        try:
            return take_json(value, key, self._notices)
        except MetadataError as reason:
            # A column `json` says what it is, as a tar's .json does. The other names have all kinds of text.
            if column.lower() == "json":
                raise
            self._notices.add(f"{self._columns.show(column)} is no JSON, and is not kept", f"{key}: {reason}")
            return None


def _size(value: Any) -> int:
    """The bytes of a text or image, alone or in a list."""
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes) else 0
