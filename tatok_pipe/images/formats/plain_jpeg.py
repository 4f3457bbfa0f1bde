"""JPEG headers that say nothing but size, colours and an ICC profile: of nine files in ten Pillow need not be asked.

Whatever else Pillow looks at (Exif, Photoshop's resources, several pictures in a file), and all that it might not
accept, is no plain header.
"""

from __future__ import annotations

from dataclasses import dataclass

_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_TABLES_OF_QUANTIZATION, _FRAMES = 0xDB, (0xC0, 0xC1, 0xC2)
# How segments begin of which Pillow reads more than how long they are.
_LOOKED_AT = {
    _APP1: (b"Exif\0\0",),
    _APP2: (b"ICC_PROFILE\0", b"MPF\0", b"FPXR\0"),
    _APP13: (b"Photoshop 3.0\0",),
}
_TABLE_BYTES = 65  # a table of 8-bit numbers, with its own number


@dataclass(frozen=True)
class PlainHeader:
    """What Pillow finds in a header beside the picture's size and mode."""

    profile: bytes | None  # ICC


def read_plain(segments: list[tuple[int, bytes]]) -> PlainHeader | None:
    """Of segments up to that of the first scan, each with its marker, between which there is nothing. None: Pillow has
    to open the file."""
    profile: list[bytes] = []
    num_frames = 0
    for marker, segment in segments:
        body = segment[4:]
        if int.from_bytes(segment[2:4]) != len(body) + 2:
            return None
        if marker == _TABLES_OF_QUANTIZATION:
            if len(body) % _TABLE_BYTES or any(number > 15 for number in body[::_TABLE_BYTES]):
                return None
        elif marker in _FRAMES:
            num_frames += 1
            if len(body) < 6 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
                return None
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and len(body) >= 14 and not num_frames:
            profile.append(body)
        elif _is_looked_at(marker, body):
            return None
    if num_frames != 1:
        return None
    profile.sort()  # by their numbers, of which the first says how many there are
    is_whole = bool(profile) and profile[0][13] == len(profile)
    return PlainHeader(b"".join(part[14:] for part in profile) if is_whole else None)


def _is_looked_at(marker: int, body: bytes) -> bool:
    """Whether Pillow finds something in an application's segment, or may not accept it."""
    if marker == _APP0:
        return body.startswith(b"JFIF") and len(body) < 12
    if marker == _APP14:
        return body.startswith(b"Adobe") and len(body) < 12
    return marker in _LOOKED_AT and body.startswith(_LOOKED_AT[marker])
