"""Of a plain header Pillow would find the same, and files whose headers are none are left to it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from tatok_pipe.images import decode
from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.formats.jpeg import read_jpeg
from tatok_pipe.images.options import PreprocessConfig
from tests.image_files.jpegs import (
    ENCODINGS,
    clean,
    encode,
    header_boundaries,
    photograph,
    quirky,
    scan_start,
    segment,
)

CONFIG = PreprocessConfig(image_size=32)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# What may be inserted, and whether Pillow finds something in it, or may refuse it.
INSERTED = {
    "comment": (segment(0xFE, b"by hand"), True),
    "application data": (segment(0xE5, b"Exif\0\0"), True),
    "XMP": (segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0tiff:Orientation="6"'), True),
    "a profile": (segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE), True),
    "a part of a profile": (segment(0xE2, b"ICC_PROFILE\0\1\2" + PROFILE), True),
    "Adobe": (segment(0xEE, b"Adobe\0\x64\0\0\0\0\1"), True),
    "Exif": (segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"), False),
    "several pictures": (segment(0xE2, b"MPF\0II*\0\x08\0\0\0"), False),
    "a profile without a number": (segment(0xE2, b"ICC_PROFILE\0"), False),
    "Photoshop, cut": (segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4"), False),
    "JFIF, cut": (segment(0xE0, b"JFIF"), False),
    "Adobe, cut": (segment(0xEE, b"Adobe"), False),
    "half a table": (segment(0xDB, bytes(30)), False),
    "a table of 16 bits": (segment(0xDB, b"\x13" + bytes(range(1, 129))), False),
    "stray bytes": (b"ab", False),
    "a marker alone": (b"\xff\xd3", False),
    "no length": (b"\xff\xe5\0\0", False),
}


def insert(data: bytes, inserted: bytes) -> bytes:
    """Behind the first segment."""
    at = header_boundaries(data)[1]
    return data[:at] + inserted + data[at:]


def outcome(data: bytes) -> tuple[object, ...]:
    """All that decoding tells."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            pixels, width, height = decode_image(data, CONFIG)
            found: tuple[object, ...] = (pixels.tobytes(), width, height)
        except DecodeError as error:
            found = (error.error, str(error))
    return *found, [str(warning.message) for warning in told]


@pytest.mark.parametrize("name", INSERTED)
def test_what_is_plain(name: str) -> None:
    inserted, is_plain = INSERTED[name]
    header = read_jpeg(insert(clean(ENCODINGS[0], 0), inserted)).plain
    assert (header is not None) == is_plain
    if header is not None:
        assert header.profile == (PROFILE if name == "a profile" else None)


def test_pillow_finds_the_same() -> None:
    files = [clean(encoding, 0) for encoding in ENCODINGS]
    files += [encode(photograph(1), icc_profile=PROFILE * 120), encode(photograph(2).convert("L"))]
    for data in files:
        jpeg = read_jpeg(data)
        with Image.open(io.BytesIO(data)) as image:
            assert jpeg.plain is not None
            assert (jpeg.width, jpeg.height, jpeg.mode) == (*image.size, image.mode)
            assert jpeg.plain.profile == image.info.get("icc_profile")
            assert not dict(image.getexif())


def test_pixels_and_refusals_are_those_of_pillows_way(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [changed for _, _, _, changed in quirky()]
    files += [
        insert(clean(encoding, 1), inserted) for encoding in ENCODINGS for inserted, _ in INSERTED.values()
    ]
    random = np.random.default_rng(0)
    for _ in range(400):
        flipped = bytearray(clean(ENCODINGS[int(random.integers(len(ENCODINGS)))], 2))
        for place in random.integers(2, scan_start(bytes(flipped)), int(random.integers(1, 4))):
            flipped[place] = int(random.choice([0, 1, 2, 255, int(random.integers(256))]))
        files.append(bytes(flipped))
    ours = [outcome(data) for data in files]
    taken = 0

    def by_pillow(*arguments: object) -> None:
        nonlocal taken
        taken += 1

    monkeypatch.setattr(decode, "_decode_plain", by_pillow)
    assert ours == [outcome(data) for data in files]
    assert taken > len(files) // 2
    assert len({found[0] for found in ours if isinstance(found[0], str)}) >= 3  # refusals were among them
