"""What a file is, by its first bytes."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from tatok_pipe.images.decode import DecodeError, decode_image, decoder_version
from tatok_pipe.images.formats import avif
from tatok_pipe.images.formats.signatures import find_format
from tatok_pipe.images.options import PreprocessConfig

from ...image_files.avif import avif_cases
from ...image_files.case import picture


def media(*brands: bytes) -> bytes:
    """The beginning of an ISO media file: the first brand is the major one."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(100)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("JPEG 2000", bytes(imagecodecs.jpeg2k_encode(picture(), codecformat="jp2"))),
        ("JPEG 2000", bytes(imagecodecs.jpeg2k_encode(picture(), codecformat="j2k"))),
        ("JPEG XL", bytes(imagecodecs.jpegxl_encode(picture()))),
        ("JPEG XL", bytes(imagecodecs.jpegxl_encode(picture(), usecontainer=True))),
        ("JPEG XR", bytes(imagecodecs.jpegxr_encode(picture()))),
        ("HEIC", media(b"heic", b"mif1")),
        ("HEIC", media(b"mif1", b"mif1", b"heic")),
        ("HEIF", media(b"mif1", b"mif1")),
        ("video", media(b"isom", b"avc1")),
        ("camera raw", media(b"crx ")),
        ("PAM", b"P7\nWIDTH 1\n"),
        ("PFM", b"PF\n1 1\n-1.0\n"),
        ("PFM", b"Pf\n1 1\n-1.0\n"),
        ("Photoshop", b"8BPS\0\1" + bytes(60)),
        ("OpenEXR", b"v/1\x01" + bytes(60)),
        ("Radiance HDR", b"#?RADIANCE\n"),
        ("Windows icon or cursor", b"\0\0\1\0\1\0" + bytes(60)),
        ("DICOM", bytes(128) + b"DICM"),
        ("SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">'),
        ("SVG", b"<svg>"),
    ],
)
def test_formats_that_are_known_but_not_read_are_named(name, data):
    with pytest.raises(DecodeError) as caught:
        decode_image(data, PreprocessConfig())
    assert (caught.value.error, str(caught.value)) == (
        "UnsupportedFormat",
        f"a {name} file; convert it to JPEG or PNG",
    )


@pytest.mark.parametrize(
    "data", [b"<html><svg></svg></html>", b"<?xml version='1.0'?><rss/>", bytes(300), b"BG"]
)
def test_what_is_no_image(data):
    with pytest.raises(DecodeError) as caught:
        find_format(data)
    assert caught.value.error == "NotAnImage"


def test_avif_by_any_of_its_brands():
    assert find_format(media(b"avif", b"mif1")) == find_format(media(b"mif1", b"mif1", b"avif")) == "AVIF"


def test_without_avif_in_pillow_it_is_refused_and_the_settings_say_so(monkeypatch):
    case = next(avif_cases())
    pixels, _, _ = decode_image(case.data, PreprocessConfig(image_size=37))
    assert case.truth is not None and np.abs(pixels - case.truth).mean() < 2
    with_avif = decoder_version()
    monkeypatch.setattr(avif, "avif_version", lambda: None)
    with pytest.raises(DecodeError, match="Pillow of this machine is not built for") as caught:
        decode_image(case.data, PreprocessConfig())
    assert caught.value.error == "UnsupportedFormat"
    assert "/avif-none/" in decoder_version() != with_avif
