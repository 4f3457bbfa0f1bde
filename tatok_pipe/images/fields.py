"""The parts of a sample, whatever kind of shard they come from: what a key, label, caption and JSON may be.

One rule for all of them: what is there and cannot be used is told, never taken for absent. Columns of Parquet, the
extensions of a tar's files and the names in a sample's JSON are the same names, and their values read the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tatok_pipe.images.notices import JSON_LABEL, MENDED_JSON, Notices

# Above this a label, caption or JSON file is quarantined: parsed JSON takes up to 30 times its size in memory.
MAX_METADATA_BYTES = 16 << 20
# The longest path of Linux. Longer keys come from no file system, and rows of them could fill the memory.
MAX_KEY_CHARACTERS = 4096

# In order of preference; compared in lower case. A label of another name is told of, and not taken.
LABEL_NAMES = (
    "label", "labels", "cls", "class", "label_id", "label_idx", "label_index", "class_id", "class_idx",
    "class_index", "target", "fine_label", "category_id",
)  # fmt: skip
CAPTION_NAMES = ("caption", "text", "txt")
# What may be left unread by the user's choice.
IGNORABLE = ("label", "caption", "meta")
WITHOUT_LABELS = "input.limits.ignore=[label] does without labels"
WITHOUT_CAPTIONS = "input.limits.ignore=[caption] does without captions"
_LABEL_ADVICE = f"write the number of the class and not its name, or {WITHOUT_LABELS}"

_LABEL_LIKE = re.compile(
    r"(.*_)?(labels?|cls|class(es)?|categor(y|ies)|targets?)(_?(ids?|idx|index|names?|text))?"
)
# A gap, as str() of pandas, Python and JavaScript writes it. Nothing at all is none: it may be a file cut off.
_GAPS = {"nan", "none", "null", "<na>"}
_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,20})(\.0*)?")
_JSON_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')


class MetadataError(Exception):
    """A part of a sample that cannot be taken; `error` is the class for the quarantine row, and the text the reason,
    with what to do where that is known."""

    def __init__(self, error: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}; {advice}" if advice else reason)
        self.error = error
        self.reason = reason
        self.advice = advice


def is_label_like(name: str) -> bool:
    """Whether a column or extension of this name seems to say what class an image is of."""
    return _LABEL_LIKE.fullmatch(name.lower()) is not None


def read_label(value: Any, name: str) -> int | None:
    """The label that a value of any type is, None for a gap; `name` is what held it.

    An int32 is one, and what is unmistakably the same number: a bool, a float or decimal with a whole value, any of
    these written as text (bytes are UTF-8), alone in a list. A gap is None, NaN, an empty list, or one of the words
    nan, none, null, <NA>. Raises MetadataError BadLabel for anything else: 0.5, "cat", "", a list of several.
    """
    try:
        number = _to_integer(value)
    except ValueError:
        number = 2**31
    if number is not None and not -(2**31) <= number < 2**31:
        raise MetadataError(
            "BadLabel",
            f"{name} holds {_show(value)}, expected a label: one whole number of 32 bits",
            _LABEL_ADVICE,
        )
    return number


def _to_integer(value: Any) -> int | None:
    """Raises ValueError."""
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError
        value = value[0] if value else None
    if isinstance(value, bytes):
        value = value.decode("utf-8-sig")  # UnicodeDecodeError is a ValueError
    if isinstance(value, str):
        return _parse_integer(value.strip().lower())
    if value is None or value != value:
        return None
    if isinstance(value, float | Decimal) and value % 1 != 0:  # NaN for the infinities, too
        raise ValueError
    if isinstance(value, bool | int | float | Decimal):
        return int(value)
    raise ValueError


def _parse_integer(text: str) -> int | None:
    if text in _GAPS:
        return None
    if text in ("true", "false"):
        return int(text == "true")
    number = _WHOLE_NUMBER.fullmatch(text)
    if number is None:
        raise ValueError
    return int(number[1])


def choose_label(values: Iterable[tuple[str, Any]]) -> int | None:
    """The first label among (name, value), None where all are gaps. Raises the first one's MetadataError where none
    can be taken."""
    error: MetadataError | None = None
    for name, value in values:
        try:
            label = read_label(value, name)
        except MetadataError as reason:
            error = error or reason
        else:
            if label is not None:
                return label
    if error is not None:
        raise error
    return None


def read_caption(value: Any, name: str) -> str | None:
    """The caption that a value is: UTF-8, alone in a list or not; None for None or an empty list. Raises
    MetadataError BadCaption."""
    if isinstance(value, list):
        if len(value) > 1:
            raise MetadataError(
                "BadCaption",
                f"{name} holds {_show(value)}, expected one caption",
                f"keep one of them, or {WITHOUT_CAPTIONS}",
            )
        value = value[0] if value else None
    return None if value is None else parse_text(value, "BadCaption")


def read_key(value: Any, name: str) -> str | None:
    """The key that a value is, None for a gap: text, a whole number, a UUID. What of bytes is not UTF-8 appears as
    \\xNN. Raises MetadataError BadKey."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes) and value:
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float | Decimal) and value % 1 == 0:
        value = int(value)
    if isinstance(value, int | uuid.UUID):
        return str(value)
    raise MetadataError("BadKey", f"{name} holds {_show(value)}, expected a key: text or a whole number")


def parse_text(data: bytes, error: str) -> str:
    """UTF-8. Raises MetadataError with the class `error`."""
    try:
        return data.decode("utf-8-sig")  # a byte order mark is not part of the text
    except UnicodeDecodeError as reason:
        raise MetadataError(error, f"not UTF-8: {reason.reason} at byte {reason.start}") from None


@dataclass(frozen=True)
class Json:
    """A JSON text of RFC 8259, and what it says."""

    text: str
    value: Any
    is_mended: bool  # there were numbers that JSON does not have

    def label(self) -> int | None:
        """The label under the first of LABEL_NAMES. Raises MetadataError where there is one that is none."""
        return choose_label((f'"{name}"', value) for name, value in self._named(LABEL_NAMES))

    def caption(self) -> str | None:
        """The text under "caption"."""
        return next((value for _, value in self._named(("caption",)) if isinstance(value, str)), None)

    def _named(self, names: tuple[str, ...]) -> list[tuple[str, Any]]:
        if not isinstance(self.value, dict):
            return []
        return [(name, self.value[name]) for name in names if self.value.get(name) is not None]


def parse_json(data: bytes) -> Json:
    """JSON, kept as the text that it is, but for NaN, Infinity and -Infinity, which Python's json.dumps writes and
    strict readers refuse the whole text for: they become null. Raises MetadataError BadJson."""
    text = parse_text(data, "BadJson")
    constants: list[str] = []
    try:
        # append gives None: what is no number has no value.
        value = json.loads(text, parse_constant=constants.append)
    except (ValueError, RecursionError) as reason:
        raise MetadataError("BadJson", f"the JSON does not parse: {reason}") from None
    if constants:
        text = _JSON_CONSTANT.sub(lambda found: found[0] if found[0][0] == '"' else "null", text)
    return Json(text, value, bool(constants))


def take_json(data: bytes, key: str, notices: Notices) -> Json:
    """`parse_json`, telling of what was mended."""
    found = parse_json(data)
    if found.is_mended:
        notices.add(MENDED_JSON, key)
    return found


def label_of_json(found: Json, key: str, notices: Notices) -> int | None:
    """The label in a sample's JSON. One that cannot be taken is told of, and not lost: it stays in meta."""
    try:
        return found.label()
    except MetadataError as reason:
        notices.add(JSON_LABEL, f"{key}: {reason}")
        return None


def digest_key(key: str) -> bytes:
    """16 bytes that stand for a key, however long it is."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shorten_key(key: str) -> str:
    """`key`; where it is longer than MAX_KEY_CHARACTERS its beginning and its digest."""
    if len(key) <= MAX_KEY_CHARACTERS:
        return key
    return f"{key[:200]}...{digest_key(key).hex()}"


def _show(value: Any) -> str:
    """A value in a message: on one line, and short."""
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) != 1 else f"[{_show(value[0])}]"
    if isinstance(value, bytes):
        value = value[:40].decode("utf-8", "backslashreplace")
    return repr(value[:40] if isinstance(value, str) else value)[:80]
