"""Which format a file is in, by its first bytes, never by its name; and the formats that are known but not read."""

from __future__ import annotations

import re

from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.table import FORMATS, HEIF_BRANDS, NAMES, UNREAD_FORMATS

# Pillow is told which one to open, and tries no other: some of its readers run programs.
_READ = re.compile(
    b"|".join(b"(?P<%s>%s)" % (each.name.encode(), each.begins) for each in FORMATS if each.begins), re.DOTALL
)
_NOT_READ = tuple((re.compile(each.begins, re.DOTALL), each.name) for each in UNREAD_FORMATS if each.begins)
_BRANDS = {brand: each.name for each in (*FORMATS, *UNREAD_FORMATS) for brand in each.brands}
NAMES_NOT_READ = tuple(
    sorted(
        {"HEIF", "video", *(each.name for each in UNREAD_FORMATS if each.begins or each.brands)},
        key=str.lower,
    )
)
_HEAD_BYTES = 1024


def find_format(data: bytes) -> str:
    """One of NAMES. Raises DecodeError: EmptyFile, UnsupportedFormat with its name, NotAnImage."""
    if not data:
        raise DecodeError("EmptyFile", "the image has 0 bytes")
    match = _READ.match(data)
    if match is not None and match.lastgroup is not None:
        return match.lastgroup
    head = data[:_HEAD_BYTES]
    name = _media_format(head) or next((name for regex, name in _NOT_READ if regex.match(head)), None)
    if name is None:
        raise DecodeError("NotAnImage", f"begins with {data[:16]!r}; expected {', '.join(NAMES)}")
    if name not in NAMES:
        raise DecodeError("UnsupportedFormat", f"a {name} file; convert it to JPEG or PNG")
    return name


def _media_format(head: bytes) -> str | None:
    """What an ISO media file is, by its major brand, else by those it is compatible with."""
    if head[4:8] != b"ftyp":
        return None
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))]
    named = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return named or ("HEIF" if any(brand in HEIF_BRANDS for brand in brands) else "video")
