"""Which columns of a Parquet file hold the images and what belongs to them, and their rows as Python values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tatok_pipe.images.fields import (
    CAPTION_NAMES,
    LABEL_NAMES,
    WITHOUT_CAPTIONS,
    WITHOUT_LABELS,
    is_label_like,
)
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices, other_labels
from tatok_pipe.images.parquet import values as values
from tatok_pipe.images.shard_errors import ShardError, UnusableShard

# In order of preference; compared in lower case. Labels and captions: `fields`.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", *IMAGE_EXTENSIONS, "image_bytes", "bytes")
# Where these hold text, it may be an image in base64.
TEXT_IMAGE_COLUMNS = (*IMAGE_COLUMNS, "image_base64", "img_base64", "image_b64", "base64", "b64")
META_COLUMNS = ("json", "meta")
KEY_COLUMNS = ("__key__", "key", "id", "image_id")
_TOKEN_COLUMNS = {"global_codes", "patch_codes", "patch_positions"}

# Types of each part, from the one that is taken first.
LABEL_TYPES = (values.is_number, values.is_textual, values.is_label_list, values.is_empty)
CAPTION_TYPES = (values.is_textual, values.is_text_list, values.is_empty)
_META_TYPES = (values.is_textual, values.is_json_type)
KEY_TYPES = (values.is_key_type,)

Test = Callable[[pa.DataType], bool]


@dataclass(frozen=True)
class Row:
    """What the columns of one row hold, before anything is checked."""

    key: Any
    image: bytes | None
    path: str | None  # where a dataset that does not embed its images has them
    label: Any
    caption: Any
    meta: Any


@dataclass(frozen=True)
class Columns:
    """The chosen columns by their names; empty where there is none."""

    image: str
    is_struct: bool
    is_text: bool
    has_path: bool
    label: str
    caption: str
    meta: str
    key: str
    types: Mapping[str, pa.DataType]  # of all columns

    @property
    def paths(self) -> list[str]:
        """What pyarrow is to read."""
        image = [self.image]
        if self.is_struct:
            image = [f"{self.image}.bytes", *([f"{self.image}.path"] if self.has_path else [])]
        return [*image, *(name for name in (self.label, self.caption, self.meta, self.key) if name)]

    def is_read(self, path: str) -> bool:
        """Whether a leaf of the file's schema, such as `label.list.element`, is among what is read."""
        return any(path == wanted or path.startswith(f"{wanted}.") for wanted in self.paths)

    def show(self, name: str) -> str:
        """A column in a message."""
        return f"column {name[:40]}: {str(self.types[name])[:60]}"

    def rows(self, batch: pa.RecordBatch) -> Iterator[Row]:
        """The rows of a batch."""
        nothing: list[Any] = [None] * batch.num_rows

        def read(name: str) -> list[Any]:
            return values.to_python(batch.column(name)) if name else nothing

        paths = nothing
        if self.is_struct:
            image = values.storage(batch.column(self.image))
            # Not image.field(): that does not see which structs are null.
            fields = {field.name: child for field, child in zip(image.type, image.flatten(), strict=True)}
            images = values.to_python(fields["bytes"])
            paths = values.to_python(fields["path"]) if self.has_path else nothing
        else:
            images = read(self.image)
        keys = values.to_keys(batch.column(self.key)) if self.key else nothing
        rest = map(read, (self.label, self.caption, self.meta))
        for key, image, path, label, caption, meta in zip(keys, images, paths, *rest, strict=True):
            yield Row(key, image, _to_text(path), label, caption, meta)


class NamedColumns:
    """The columns of a schema that can be asked for by name, whatever its case."""

    def __init__(self, schema: pa.Schema) -> None:
        self.types = {
            field.name: field.type
            for field in schema
            if schema.names.count(field.name) == 1 and "." not in field.name
        }
        self.by_name = {name.lower(): name for name in reversed(self.types)}

    def first(self, wanted: tuple[str, ...], *tests: Test) -> str:
        """The first of these names whose type is right by one of the tests; empty where there is none."""
        present = (self.by_name[name] for name in wanted if name in self.by_name)
        return next((name for name in present if any(test(self.types[name]) for test in tests)), "")

    def choose(self, wanted: tuple[str, ...], tests: tuple[Test, ...]) -> str:
        """The first of these names of the first type that any has."""
        return next((name for test in tests if (name := self.first(wanted, test))), "")


def are_tokens(schema: pa.Schema) -> bool:
    """Whether these are the columns of a token shard of ours."""
    return _TOKEN_COLUMNS.issubset(schema.names)


def find_columns(schema: pa.Schema, shard: str, limits: ShardLimits, notices: Notices) -> Columns:
    """The columns to read. Raises ShardError where none holds images, naming what is there; UnusableShard where what
    is called like a label, caption, JSON or key is of no type that can be one."""
    if are_tokens(schema):
        raise ShardError(
            shard, 0, "a token shard, expected images", "give the image shards that it was made from"
        )
    known = NamedColumns(schema)
    types, by_name = known.types, known.by_name
    image = _find_image(known)
    if not image:
        raise no_images(schema, shard)
    kind = values.storage_type(types[image])
    is_struct = pa.types.is_struct(kind)

    def choose(
        part: str, wanted: tuple[str, ...], tests: tuple[Test, ...], expected: str, advice: str
    ) -> str:
        """The first name of the first type; where there are only others, a refusal."""
        if not limits.wants(part):
            return ""
        chosen = known.choose(wanted, tests)
        others = [by_name[name] for name in wanted if name in by_name and by_name[name] != image]
        others += [name for name in schema.names if name.lower() in wanted and name not in types]
        unusable = [name for name in others if not values.is_image_struct(types.get(name, pa.null()))]
        if chosen or not unusable:
            return chosen
        name = unusable[0]
        found = (
            f"column {name[:40]}: {str(types[name])[:60]}"
            if name in types
            else f"several columns {name[:40]}"
        )
        raise UnusableShard(shard, 0, f"{found}, expected {expected}", advice)

    label = choose(
        "label",
        LABEL_NAMES,
        LABEL_TYPES,
        "labels: integers, or what is the same (whole floats, digits as text, bool)",
        f"write the number of the class, or {WITHOUT_LABELS}",
    )
    if limits.wants("label"):
        _tell_other_labels(schema, label, image, notices)
    return Columns(
        image=image,
        is_struct=is_struct,
        is_text=values.is_text(kind),
        has_path=is_struct and kind.get_field_index("path") >= 0 and values.is_text(kind.field("path").type),
        label=label,
        caption=choose(
            "caption", CAPTION_NAMES, CAPTION_TYPES, "text", f"write one text, or {WITHOUT_CAPTIONS}"
        ),
        meta=choose(
            "meta",
            META_COLUMNS,
            _META_TYPES,
            "JSON as text, or a struct of texts, numbers and bools",
            "write JSON, or input.limits.ignore=[meta] does without it",
        ),
        key=choose(
            "key", KEY_COLUMNS, KEY_TYPES, "keys: text or integers", "write keys as text, or drop the column"
        ),
        types=types,
    )


def has_images(schema: pa.Schema) -> bool:
    """Whether a column may hold images."""
    return bool(_find_image(NamedColumns(schema)))


def _find_image(known: NamedColumns) -> str:
    structs = [name for name, kind in known.types.items() if values.is_image_struct(kind)]
    image = known.first(IMAGE_COLUMNS, values.is_image_struct, values.is_binary)
    if not image and len(structs) == 1:
        image = structs[0]
    return image or known.first(TEXT_IMAGE_COLUMNS, values.is_textual)


def no_images(schema: pa.Schema, shard: str, also: str = "") -> UnusableShard:
    """The refusal of a file without a column of images; `also` says more of what is there."""
    found = ", ".join(f"{field.name[:40]}: {str(field.type)[:60]}" for field in list(schema)[:12])
    return UnusableShard(
        shard,
        0,
        f"no column of images among {len(schema)} columns ({found}){also}",
        "expected struct<bytes: binary, path: string> or binary, or base64 as text, named "
        f"{', '.join(IMAGE_COLUMNS[:7])}",
    )


def _tell_other_labels(schema: pa.Schema, label: str, image: str, notices: Notices) -> None:
    others = [
        f"{field.name[:40]}: {str(field.type)[:60]}"
        for field in schema
        if field.name not in (label, image) and is_label_like(field.name.partition(".")[0])
    ]
    if others:
        notices.add(other_labels(label, ", ".join(others[:8])), "")


def _to_text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")
