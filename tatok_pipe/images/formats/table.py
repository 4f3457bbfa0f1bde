"""The formats of images: a row for each that is read, and for each that is known and not read.

The module of a row, `formats/<name>.py`, has a `READER`. It is imported where the first such file comes, as options
need the endings alone, and no Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tatok_pipe.images.formats.reading import Reader


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read: its files are known by their first bytes or, of ISO media files, by their brand, and
    among the files of a shard by their extension."""

    name: str  # Pillow's
    extensions: tuple[str, ...]  # the first is that of files which are written
    begins: bytes = b""  # a regular expression; `.` is any byte
    brands: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class UnreadFormat:
    """A format that no decoder here reads, so that a user is told its name. Its extensions count where a sample has no
    other image."""

    name: str
    extensions: tuple[str, ...] = ()
    begins: bytes = b""
    brands: tuple[bytes, ...] = ()


FORMATS = (
    ImageFormat("JPEG", ("jpg", "jpeg", "jpe", "jfif"), rb"\xff\xd8\xff"),
    ImageFormat("PNG", ("png",), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("WEBP", ("webp",), rb"RIFF.{4}WEBP"),
    ImageFormat("AVIF", ("avif",), brands=(b"avif", b"avis")),
    ImageFormat("GIF", ("gif",), rb"GIF8[79]a"),
    ImageFormat("BMP", ("bmp", "dib"), rb"BM"),
    ImageFormat("TIFF", ("tif", "tiff"), rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("PPM", ("ppm", "pgm", "pbm", "pnm"), rb"P[1-6][\s#]"),
    ImageFormat("QOI", ("qoi",), rb"qoif"),
)
UNREAD_FORMATS = (
    UnreadFormat(
        "HEIC",
        ("heic", "heif", "hif"),
        brands=(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    ),
    UnreadFormat("JPEG 2000", ("jp2", "j2k", "jpx"), rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    UnreadFormat("JPEG XL", ("jxl",), rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    UnreadFormat("JPEG XR", ("jxr",), rb"II\xbc\x01"),
    UnreadFormat("Photoshop", ("psd",), rb"8BPS"),
    UnreadFormat("OpenEXR", ("exr",), rb"v/1\x01"),
    UnreadFormat("Radiance HDR", ("hdr",), rb"#\?(RADIANCE|RGBE)"),
    UnreadFormat("PFM", ("pfm",), rb"P[Ff]4?[\s#]"),
    UnreadFormat("PAM", ("pam",), rb"P7[\s#]"),
    UnreadFormat("SVG", ("svg",), rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg[\s>]"),
    UnreadFormat("Windows icon or cursor", ("ico",), rb"\0\0[\1\2]\0[^\0]\0"),
    UnreadFormat("Targa", ("tga",)),
    UnreadFormat(
        "camera raw",
        ("dng", "cr2", "cr3", "nef", "arw"),
        rb"FUJIFILMCCD-RAW|IIRO|IIRS|IIU\0",
        brands=(b"crx ",),
    ),
    UnreadFormat("DDS", ("dds",), rb"DDS "),
    UnreadFormat("FLIF", begins=rb"FLIF"),
    UnreadFormat("BPG", begins=rb"BPG\xfb"),
    UnreadFormat("farbfeld", begins=rb"farbfeld"),
    UnreadFormat("GIMP", begins=rb"gimp xcf"),
    UnreadFormat("FITS", begins=rb"SIMPLE  ="),
    UnreadFormat("DICOM", begins=rb".{128}DICM"),
    UnreadFormat("MNG or JNG", begins=rb"\x8aMNG|\x8bJNG"),
    UnreadFormat("Sun raster", begins=rb"\x59\xa6\x6a\x95"),
)
# ISO media files by brands of many programs: who wrote them did not say in which coding.
HEIF_BRANDS = (b"mif1", b"mif2", b"msf1")

NAMES = tuple(each.name for each in FORMATS)
IMAGE_EXTENSIONS = tuple(extension for each in FORMATS for extension in each.extensions)
UNREAD_EXTENSIONS = tuple(extension for each in UNREAD_FORMATS for extension in each.extensions)


@cache
def reader_of(name: str) -> Reader:
    """Of the format in FORMATS with this name."""
    return import_module(f"tatok_pipe.images.formats.{name.lower()}").READER
