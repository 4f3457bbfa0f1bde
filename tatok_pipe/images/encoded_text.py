"""Images written as text: base64 and data: URIs, as corpora that were JSON or TSV once carry them into other formats.

They are decoded where there can be no mistake: all of the value is base64, and what it stands for begins like an
image, or the URI says so. No encoded image is such a text itself: all formats begin or go on with other bytes.
"""

from __future__ import annotations

import binascii
import re

from tatok_pipe.images.formats.table import FORMATS, UNREAD_FORMATS

NOTICE = "the images are base64 text or data: URIs: decoded"
_DATA_URI = re.compile(rb"\s*data:image/[^,]{0,200};base64,", re.IGNORECASE)
_BASE64 = re.compile(rb"\s*[A-Za-z0-9+/_-]{16}")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# Formats that are not read are told by their names then; ISO media files by the word that all of them have.
_IMAGE = re.compile(
    b"|".join([*(each.begins for each in (*FORMATS, *UNREAD_FORMATS) if each.begins), rb".{4}ftyp"]),
    re.DOTALL,
)


def decode_text(data: bytes) -> bytes | None:
    """The image that `data` is in base64, alone or in a data: URI; None where it is no such text."""
    uri = _DATA_URI.match(data)
    if uri is None and _BASE64.match(data) is None:
        return None
    text = data[uri.end() if uri else 0 :].translate(_FROM_URL_SAFE, b" \t\r\n").rstrip(b"=")
    try:
        image = binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        return None
    return image if uri or _IMAGE.match(image) else None
