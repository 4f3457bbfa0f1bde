"""Which format a file is in, by its first bytes, never by its name; and the formats that are known but not read."""

from __future__ import annotations

import re

from tatok_pipe.images.errors import DecodeError

# Pillow is told which one to open, and tries no other: some of its readers run programs.
_READ = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF.{4}WEBP)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<PPM>P[1-6][\s#])",
    re.DOTALL,
)
FORMATS = (*_READ.groupindex, "AVIF")

_NOT_READ = (
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", "JPEG XL"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"P7[\s#]", "PAM"),
    (rb"P[Ff]4?[\s#]", "PFM"),
    (rb"8BPS", "Photoshop"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"DDS ", "DDS"),
    (rb"qoif", "QOI"),
    (rb"\0\0[\1\2]\0[^\0]\0", "Windows icon or cursor"),
    (rb"FLIF", "FLIF"),
    (rb"BPG\xfb", "BPG"),
    (rb"farbfeld", "farbfeld"),
    (rb"gimp xcf", "GIMP"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"\x8aMNG|\x8bJNG", "MNG or JNG"),
    (rb"\x59\xa6\x6a\x95", "Sun raster"),
    (rb"FUJIFILMCCD-RAW|IIRO|IIRS|IIU\0", "camera raw"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg[\s>]", "SVG"),
)
_NOT_READ_PATTERNS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _NOT_READ)
# Of ISO media files; the brand says what is in it.
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    "camera raw": (b"crx ",),
}
_HEIF_BRANDS = (b"mif1", b"mif2", b"msf1")
NAMES_NOT_READ = tuple(sorted({"HEIC", "HEIF", "video", *(name for _, name in _NOT_READ)}, key=str.lower))
_HEAD_BYTES = 1024


def find_format(data: bytes) -> str:
    """One of FORMATS. Raises DecodeError: EmptyFile, UnsupportedFormat with its name, NotAnImage."""
    if not data:
        raise DecodeError("EmptyFile", "the image has 0 bytes")
    match = _READ.match(data)
    if match is not None and match.lastgroup is not None:
        return match.lastgroup
    head = data[:_HEAD_BYTES]
    name = _media_format(head) or next(
        (name for regex, name in _NOT_READ_PATTERNS if regex.match(head)), None
    )
    if name == "AVIF":
        return name
    if name is not None:
        raise DecodeError("UnsupportedFormat", f"a {name} file; convert it to JPEG or PNG")
    raise DecodeError("NotAnImage", f"begins with {data[:16]!r}; expected {', '.join(FORMATS)}")


def _media_format(head: bytes) -> str | None:
    """What an ISO media file is, by its major brand, else by those it is compatible with."""
    if head[4:8] != b"ftyp":
        return None
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))]
    for brand in brands:
        for name, known in _BRANDS.items():
            if brand in known:
                return name
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else "video"
