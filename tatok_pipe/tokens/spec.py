"""What the tokens of a dataset are: counts and vocabularies, who made them, and the columns they fill."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tatok_pipe.images.class_names import are_names, difference_of_names

FORMAT_VERSION = 3
MAX_PATCHES = 1 << 16  # positions are uint16
MAX_VOCAB = 1 << 24  # every shard carries a count per code


@dataclass(frozen=True)
class FilterSpec:
    """How the patches that rows hold were chosen, in the tokenizer's words: the names of a rule and a score, the rule's
    number, and how many patches an image has at least."""

    rule: str
    score: str
    value: float
    min_patches: int

    def __post_init__(self) -> None:
        for name, kind, expected in (
            ("rule", str, "text"),
            ("score", str, "text"),
            ("value", int | float, "a number"),
            ("min_patches", int, "a whole number"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"dtf.{name}={getattr(self, name)!r}: expected {expected}")

    def __str__(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class TokenSpec:
    """Everything that two token shards must have in common to belong to one dataset."""

    num_globals: int  # K, per image
    num_patches: int  # N, per image, before filtering
    global_vocab: int  # V_g
    patch_vocab: int  # V_p
    image_size: int  # pixels, of the square crop that was encoded
    patch_size: int  # pixels
    tokenizer_fingerprint: str
    dtf: FilterSpec
    encoding: dict[str, Any] = field(
        default_factory=dict
    )  # other settings that change codes: precision, versions
    class_names: tuple[str, ...] = ()  # by label; none where nobody told them

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))  # JSON has lists
        if self.class_names and not are_names(self.class_names):
            raise ValueError("class_names: expected the name of a class in each, in one line and not empty")
        for name, least in (("num_globals", 0), ("num_patches", 1), ("image_size", 1), ("patch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        for name in ("global_vocab", "patch_vocab"):
            if not 1 <= getattr(self, name) <= MAX_VOCAB:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 to {MAX_VOCAB}")
        if self.num_patches > MAX_PATCHES:
            raise ValueError(
                f"num_patches={self.num_patches}: expected at most {MAX_PATCHES}, positions are uint16"
            )
        if self.image_size % self.patch_size or (self.image_size // self.patch_size) ** 2 != self.num_patches:
            raise ValueError(
                f"num_patches={self.num_patches}: expected (image_size / patch_size)^2 with "
                f"image_size={self.image_size} and patch_size={self.patch_size}"
            )
        if not self.tokenizer_fingerprint:
            raise ValueError(
                "tokenizer_fingerprint is empty: expected the fingerprint of the tokenizer checkpoint"
            )

    @property
    def crops_per_image(self) -> int:
        """Rows of an image: what `encoding` says of its crops, 1 where it says nothing."""
        return self.encoding.get("crops", {}).get("per_image", 1)

    @property
    def has_scores(self) -> bool:
        """Whether rows hold what losing each patch costs, by the score of `dtf`, and the entropies of all patches."""
        return bool(self.encoding.get("scores", False))

    def show_class(self, label: int) -> str:
        """A class for people: its name, where it has one, and its number."""
        is_named = 0 <= label < len(self.class_names)
        return f"{self.class_names[label]} (class {label})" if is_named else f"class {label}"

    @property
    def row_name(self) -> str:
        """What to call a row in a sentence."""
        return "image" if self.crops_per_image == 1 else "crop"

    def differences_of_codes(self, other: TokenSpec) -> list[str]:
        """As `differences`, of what has to be the same where images of both are trained on together: who made the
        codes, their numbers and their vocabularies. How patches were chosen, and names of classes, are not of it."""
        names = (
            "tokenizer_fingerprint",
            "num_globals",
            "num_patches",
            "global_vocab",
            "patch_vocab",
            "image_size",
        )
        return [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON types; `from_json` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TokenSpec:
        """The spec of a JSON object. Raises ValueError where a field is missing, unknown or out of range."""
        expected = [each.name for each in dataclasses.fields(cls)]
        if sorted(value) != sorted(expected):
            raise ValueError(f"token spec has fields {sorted(value)}, expected {sorted(expected)}")
        try:
            return cls(**{**value, "dtf": FilterSpec(**value["dtf"])})
        except TypeError as error:
            raise ValueError(f"token spec: dtf={value['dtf']!r}: {error}") from None

    def differences(self, other: TokenSpec) -> list[str]:
        """One line "field: mine, not theirs" for each field, or key of `dtf` and `encoding`, that differs. Names of
        classes agree where one list goes on where the other ends: classes come to a folder."""
        mine, theirs = _flatten(self.to_json()), _flatten(other.to_json())
        names = (mine.pop("class_names"), theirs.pop("class_names"))
        found = [
            f"{name}: {_shown(mine, name)}, not {_shown(theirs, name)}"
            for name in sorted({**mine, **theirs})
            if _shown(mine, name) != _shown(theirs, name)
        ]
        short, long = sorted(names, key=len)
        agree = short == long[: len(short)] and bool(short) == bool(long)
        return found if agree else [*found, f"class names: {difference_of_names(*names)}"]


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat


def _shown(values: dict[str, Any], name: str) -> str:
    return json.dumps(values[name], sort_keys=True) if name in values else "unset"


def code_type(vocab: int) -> pa.DataType:
    """The smallest of uint16 and uint32 that holds the codes 0 to vocab - 1."""
    return pa.uint16() if vocab <= 1 << 16 else pa.uint32()


def token_schema(spec: TokenSpec) -> pa.Schema:
    """The columns of a token shard, format 3: one row per image (per crop), in source order."""

    def item(data_type: pa.DataType) -> pa.Field:
        return pa.field("element", data_type, nullable=False)

    # Parquet writers have no lists of the fixed size 0.
    globals_size = spec.num_globals or -1
    scores = pa.field("patch_score", pa.list_(item(pa.float16()), spec.num_patches), nullable=False)  # all N
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32()),
            pa.field("caption", pa.string()),
            pa.field("meta", pa.string()),  # JSON text
            pa.field("width", pa.int32(), nullable=False),  # source pixels
            pa.field("height", pa.int32(), nullable=False),
            pa.field("crop", pa.int16(), nullable=False),
            pa.field(
                "global_codes", pa.list_(item(code_type(spec.global_vocab)), globals_size), nullable=False
            ),
            pa.field("patch_codes", pa.list_(item(code_type(spec.patch_vocab))), nullable=False),  # kept only
            pa.field("patch_positions", pa.list_(item(pa.uint16())), nullable=False),  # strictly increasing
            pa.field("num_tokens", pa.int32(), nullable=False),  # K + kept
            pa.field("entropy_total", pa.float32(), nullable=False),  # nats
            pa.field("entropy_dropped", pa.float32(), nullable=False),  # nats
            pa.field("mutual_information", pa.float32()),  # nats
            pa.field("patch_entropy", pa.list_(item(pa.float32()))),  # nats, all N; Spark reads no float16
            *([scores] if spec.has_scores else []),
        ]
    )


def quarantine_schema() -> pa.Schema:
    """The columns of a quarantine file: one row per source sample that produced no token row."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("stage", pa.string(), nullable=False),
            pa.field("error", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("num_bytes", pa.int64(), nullable=False),
        ]
    )
