"""AVIF, where this Pillow can read it."""

from __future__ import annotations

from PIL import features

from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.reading import Reader, Reading


def avif_version() -> str | None:
    """Of the library in Pillow; None where there is none."""
    return features.version_module("avif") if features.check_module("avif") else None


def _read(data: bytes) -> Reading:
    if avif_version() is None:
        raise DecodeError(
            "UnsupportedFormat",
            "an AVIF file, which the Pillow of this machine is not built for; install Pillow's wheel from PyPI, "
            "or convert the file to JPEG or PNG",
        )
    return Reading(data)


def _ends_early(data: bytes) -> bool:
    """Whether the file says that it is longer."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:  # up to the end of the file
            return False
        at += max(length, 8)
    return at != len(data)


READER = Reader(_read, ends_early=_ends_early, version=lambda: f"avif-{avif_version() or 'none'}")
