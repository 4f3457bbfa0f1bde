"""Which columns of a Parquet file hold the images and what belongs to them, and their rows as Python values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tatok_pipe.images.shards import IMAGE_EXTENSIONS, ShardError

# In order of preference; compared in lower case.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", *IMAGE_EXTENSIONS, "image_bytes", "bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")
CAPTION_COLUMNS = ("caption", "text", "txt")
META_COLUMNS = ("json", "meta")
KEY_COLUMNS = ("__key__", "key", "id", "image_id")
_TOKEN_COLUMNS = {"global_codes", "patch_codes", "patch_positions"}


@dataclass(frozen=True)
class Row:
    """What the columns of one row hold, before anything is checked."""

    key: str | None
    image: bytes | None
    path: str | None  # where a dataset that does not embed its images has them
    label: int | None
    caption: bytes | None
    meta: bytes | None


@dataclass(frozen=True)
class Columns:
    """The chosen columns by their names; empty where there is none."""

    image: str
    is_struct: bool
    has_path: bool
    label: str
    caption: str
    meta: str
    key: str

    @property
    def paths(self) -> list[str]:
        """What pyarrow is to read."""
        image = [self.image]
        if self.is_struct:
            image = [f"{self.image}.bytes", *([f"{self.image}.path"] if self.has_path else [])]
        return [*image, *(name for name in (self.label, self.caption, self.meta, self.key) if name)]

    def rows(self, batch: pa.RecordBatch) -> Iterator[Row]:
        """The rows of a batch."""
        nothing: list[Any] = [None] * batch.num_rows

        def values(name: str) -> list[Any]:
            return _to_python(batch.column(name)) if name else nothing

        paths = nothing
        if self.is_struct:
            image = _storage(batch.column(self.image))
            # Not image.field(): that does not see which structs are null.
            fields = {field.name: child for field, child in zip(image.type, image.flatten(), strict=True)}
            images = _to_python(fields["bytes"])
            paths = _to_python(fields["path"]) if self.has_path else nothing
        else:
            images = values(self.image)
        rest = map(values, (self.label, self.caption, self.meta, self.key))
        for image, path, label, caption, meta, key in zip(images, paths, *rest, strict=True):
            yield Row(_to_text(key), image, _to_text(path), label, caption, meta)


def are_tokens(schema: pa.Schema) -> bool:
    """Whether these are the columns of a token shard of ours."""
    return _TOKEN_COLUMNS.issubset(schema.names)


def find_columns(schema: pa.Schema, shard: str) -> Columns:
    """The columns to read. Raises ShardError where none holds images, naming what is there."""
    if are_tokens(schema):
        raise ShardError(
            shard, 0, "a token shard, expected images", "give the image shards that it was made from"
        )
    types = {
        field.name: _storage_type(field.type)
        for field in schema
        if schema.names.count(field.name) == 1 and "." not in field.name  # others cannot be asked for by name
    }
    by_name = {name.lower(): name for name in reversed(types)}

    def first(wanted: tuple[str, ...], *tests: Callable[[pa.DataType], bool]) -> str:
        present = (by_name[name] for name in wanted if name in by_name)
        return next((name for name in present if any(test(types[name]) for test in tests)), "")

    image = first(IMAGE_COLUMNS, _is_image_struct, _is_binary)
    if not image:
        structs = [name for name, kind in types.items() if _is_image_struct(kind)]
        if len(structs) != 1:
            found = ", ".join(f"{field.name[:40]}: {str(field.type)[:60]}" for field in list(schema)[:12])
            raise ShardError(
                shard,
                0,
                f"no column of images among {len(schema)} columns ({found})",
                f"expected struct<bytes: binary, path: string> or binary, named {', '.join(IMAGE_COLUMNS[:7])}",
            )
        image = structs[0]
    kind = types[image]
    is_struct = pa.types.is_struct(kind)
    return Columns(
        image=image,
        is_struct=is_struct,
        has_path=is_struct and kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type),
        label=first(LABEL_COLUMNS, pa.types.is_integer),
        caption=first(CAPTION_COLUMNS, _is_text),
        meta=first(META_COLUMNS, _is_text),
        key=first(KEY_COLUMNS, _is_text, pa.types.is_integer),
    )


def _storage_type(kind: pa.DataType) -> pa.DataType:
    """What values of this type are stored as: behind extension types and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _storage(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _is_image_struct(kind: pa.DataType) -> bool:
    return (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(_storage_type(kind.field("bytes").type))
    )


def _is_binary(kind: pa.DataType) -> bool:
    is_view = getattr(pa.types, "is_binary_view", lambda kind: False)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or is_view(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    is_view = getattr(pa.types, "is_string_view", lambda kind: False)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)


def _to_python(array: pa.Array) -> list[Any]:
    """Integers, or bytes: also of texts, which may be something else than UTF-8."""
    array = _storage(array)
    if _is_text(array.type):
        array = array.cast(pa.large_binary())
    return array.to_pylist()


def _to_text(value: bytes | int | None) -> str | None:
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    return value.decode("utf-8", "backslashreplace")
