"""Types of Arrow by what a part of a sample may be, and columns as the Python values that `fields` reads."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa


def storage_type(kind: pa.DataType) -> pa.DataType:
    """What values of this type are stored as: behind extension types and dictionaries."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def storage(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def is_image_struct(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and is_binary(storage_type(kind.field("bytes").type))
    )


def is_binary(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_textual(kind: pa.DataType) -> bool:
    """Text, or bytes that may be text."""
    return is_text(kind) or (is_binary(kind) and not pa.types.is_fixed_size_binary(storage_type(kind)))


def is_number(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return (
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    )


def is_empty(kind: pa.DataType) -> bool:
    """A column of nothing but nulls."""
    return pa.types.is_null(storage_type(kind))


def item_type(kind: pa.DataType) -> pa.DataType | None:
    """Of a list of any kind what it is a list of."""
    kind = storage_type(kind)
    if (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    ):
        return kind.value_type
    return None


def is_label_list(kind: pa.DataType) -> bool:
    item = item_type(kind)
    return item is not None and (is_number(item) or is_textual(item) or is_empty(item))


def is_text_list(kind: pa.DataType) -> bool:
    item = item_type(kind)
    return item is not None and (is_textual(item) or is_empty(item))


def is_key_type(kind: pa.DataType) -> bool:
    """Text, integers, whole floats and decimals; UUIDs, and digests of fixed length."""
    is_bool = pa.types.is_boolean(storage_type(kind))
    return is_text(kind) or is_binary(kind) or is_empty(kind) or (is_number(kind) and not is_bool)


def is_json_type(kind: pa.DataType) -> bool:
    """What can be written as JSON: structs and lists of texts, numbers and bools."""
    kind = storage_type(kind)
    if pa.types.is_struct(kind):
        return all(is_json_type(kind.field(i).type) for i in range(kind.num_fields))
    item = item_type(kind)
    if item is not None:
        return is_json_type(item)
    return is_text(kind) or is_empty(kind) or (is_number(kind) and not pa.types.is_decimal(kind))


def to_python(array: pa.Array) -> list[Any]:
    """Numbers, lists and dicts as they are; text as bytes, since it may be something else than UTF-8."""
    array = storage(array)
    if is_text(array.type):
        array = array.cast(pa.large_binary())
    elif is_text_list(array.type):
        array = array.cast(pa.large_list(pa.large_binary()))
    return array.to_pylist()


def to_keys(array: pa.Array) -> list[Any]:
    """As `to_python`; but bytes of fixed length, which are UUIDs or digests, as their digits."""
    if not pa.types.is_fixed_size_binary(storage_type(array.type)):
        return to_python(array)
    is_uuid = getattr(array.type, "extension_name", "") == "arrow.uuid"
    show = _show_uuid if is_uuid else bytes.hex
    return [None if value is None else show(value).encode() for value in storage(array).to_pylist()]


def _show_uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))
