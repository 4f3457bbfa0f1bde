"""The parts of a sample, whatever kind of shard they come from: what a key, label, caption and JSON may be."""

from __future__ import annotations

import hashlib
import json
import re

# Above this a label, caption or JSON file is quarantined: parsed JSON takes up to 30 times its size in memory.
MAX_METADATA_BYTES = 16 << 20
# The longest path of Linux. Longer keys come from no file system, and rows of them could fill the memory.
MAX_KEY_CHARACTERS = 4096


class MetadataError(Exception):
    """A label, caption or JSON text that cannot be taken; `error` is the class for the quarantine row."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def check_label(label: int, shown: str) -> int:
    """`label`, where it is an int32. Raises MetadataError BadLabel."""
    if not -(2**31) <= label < 2**31:
        raise MetadataError("BadLabel", f"{shown}, expected an int32")
    return label


def parse_label(data: bytes) -> int:
    """An int32 written in decimal. Raises MetadataError BadLabel."""
    text = data.strip()
    shown = f".cls holds {data[:40]!r}"
    if not re.fullmatch(rb"[+-]?[0-9]{1,10}", text):
        raise MetadataError("BadLabel", f"{shown}, expected an int32 in decimal")
    return check_label(int(text), shown)


def parse_text(data: bytes, error: str) -> str:
    """UTF-8. Raises MetadataError with the class `error`."""
    try:
        return data.decode("utf-8-sig")  # a byte order mark is not part of the text
    except UnicodeDecodeError as reason:
        raise MetadataError(error, f"not UTF-8: {reason.reason} at byte {reason.start}") from None


def parse_json(data: bytes) -> str:
    """JSON, kept as the text that it is. Raises MetadataError BadJson."""
    text = parse_text(data, "BadJson")
    try:
        json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise MetadataError("BadJson", f"the JSON does not parse: {reason}") from None
    return text


def digest_key(key: str) -> bytes:
    """16 bytes that stand for a key, however long it is."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shorten_key(key: str) -> str:
    """`key`; where it is longer than MAX_KEY_CHARACTERS its beginning and its digest."""
    if len(key) <= MAX_KEY_CHARACTERS:
        return key
    return f"{key[:200]}...{digest_key(key).hex()}"
