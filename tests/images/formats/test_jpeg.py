"""JPEGs that libjpeg only warns of: what lost pixels is refused, what did not keeps its pixels.

The oracle is OpenCV, whose libjpeg is another build and leaves its first warning on stderr.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tatok_pipe.images.decode import DecodeError, decode_image, decoder_version
from tatok_pipe.images.formats import jpeg
from tatok_pipe.images.formats.jpeg import load_jpeg, read_jpeg
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample
from tests.image_files.jpegs import (
    DAMAGES,
    ENCODINGS,
    HEIGHT,
    WIDTH,
    clean,
    cut_and_close,
    encode,
    photograph,
    quirky,
    segment,
    with_frame,
)

REAL_SHARD = Path(__file__).parents[4] / "shared/data/imagenet-sample/000000.tar"
CONFIG = PreprocessConfig(image_size=HEIGHT)  # so that the crop is not scaled, and shows every row


def pixels_of_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


Oracle = Callable[[bytes], str]


@pytest.fixture
def warning_of(capfd: pytest.CaptureFixture[str]) -> Oracle:
    """What a libjpeg has to say of a file, which it then decodes all the same or not; empty: nothing."""

    def decode(data: bytes) -> str:
        capfd.readouterr()
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return capfd.readouterr().err.strip() or ("" if picture is not None else "no picture")

    return decode


def refusal(data: bytes) -> DecodeError | None:
    try:
        decode_image(data, CONFIG)
    except DecodeError as error:
        return error
    return None


def test_every_damage_that_libjpeg_tells_of_is_refused_and_no_other(warning_of: Oracle):
    counts = Counter()
    for (number, encoding), damage, seed in product(enumerate(ENCODINGS), DAMAGES, range(17)):
        whole = clean(encoding, seed)
        damaged = damage(whole, np.random.default_rng((number, seed)))
        assert damaged.endswith(b"\xff\xd9")
        error, told = refusal(damaged), warning_of(damaged)
        assert (error is None) == (not told), (damage.__name__, encoding, seed, told)
        if error is None:
            continue
        assert error.error in ("Truncated", "Corrupt")
        counts["refused"] += 1
        counts["in the same words"] += str(error) == f"libjpeg: {told}"
        with suppress(OSError):
            counts["unseen by Pillow"] += bool((pixels_of_pillow(damaged) != pixels_of_pillow(whole)).any())
    # Half of the flipped bits leave codes of the same length, or soon do again: a decoder cannot tell.
    assert counts["refused"] >= 300
    assert counts["unseen by Pillow"] > 0.9 * counts["refused"]
    assert (
        counts["in the same words"] > 0.9 * counts["refused"]
    )  # the first warning, unless an error comes after it


def test_quirks_keep_their_pixels(warning_of: Oracle):
    num_files, remarked = 0, set()
    for quirk, encoding, whole, changed in quirky():
        num_files += 1
        side = (WIDTH - HEIGHT) // 2
        expected = pixels_of_pillow(whole)[:, side : side + HEIGHT]
        np.testing.assert_array_equal(
            decode_image(changed, CONFIG)[0], expected, f"{quirk.__name__} {encoding}"
        )
        if quirk not in remarked and warning_of(changed):
            remarked.add(quirk)
    assert num_files >= 300
    assert len(remarked) >= 6, remarked  # else this tests nothing


def test_a_quirk_hides_no_damage(warning_of: Oracle):
    num_files = 0
    for number, (quirk, encoding, whole, _) in enumerate(quirky()):
        damaged = DAMAGES[number % 3](whole, np.random.default_rng(number))
        hidden = quirk(damaged, np.random.default_rng(number))
        if warning_of(damaged) and warning_of(hidden):  # else padding stands for what is missing
            num_files += 1
            assert refusal(hidden) is not None, (quirk.__name__, encoding, number)
    assert num_files >= 250


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(("mode", "options"), [
    ("RGB", {"subsampling": 0}), ("RGB", {"subsampling": 1}), ("RGB", {"subsampling": 2}),
    ("RGB", {"progressive": True}), ("RGB", {"keep_rgb": True}), ("L", {}), ("L", {"progressive": True}),
    ("CMYK", {}), ("CMYK", {"progressive": True}),
])  # fmt: skip
def test_pixels_are_those_of_pillow(mode, options, scale):
    for width, height in ((176, 120), (131, 97)):
        data = encode(photograph(1, width, height).convert(mode), quality=90, **options)
        image, reference = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
        for each in (image, reference):
            each.draft(None, (width // scale, height // scale))
        assert scale == 1 or image.width < width
        loaded = load_jpeg(read_jpeg(data), image.size)
        assert loaded is not None and (isinstance(loaded, np.ndarray) or loaded.mode == mode)
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(reference))


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_pixels_of_other_subsamplings(subsampling):
    data = simplejpeg.encode_jpeg(np.asarray(photograph(1)), colorsubsampling=subsampling)
    expected = pixels_of_pillow(data)[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT]
    np.testing.assert_array_equal(decode_image(data, CONFIG)[0], expected)


@pytest.mark.skipif(not REAL_SHARD.exists(), reason=f"no real photographs at {REAL_SHARD}")
def test_pixels_of_real_photographs_are_those_of_pillow():
    with open(REAL_SHARD, "rb") as shard:
        samples = [sample for sample in read_samples(shard, shard="real") if isinstance(sample, ImageSample)]
    assert len(samples) == 100
    for sample in samples:
        with Image.open(io.BytesIO(sample.image)) as image:
            loaded = load_jpeg(read_jpeg(sample.image), image.size)
        assert np.asarray(loaded).tobytes() == Image.open(io.BytesIO(sample.image)).tobytes(), sample.key


def test_threads_share_nothing():
    files = [clean(encoding, 0) for encoding in ENCODINGS] * 8
    files += [cut_and_close(data, np.random.default_rng(0)) for data in files[:8]]

    def outcome(data: bytes) -> str | bytes:
        error = refusal(data)
        return str(error) if error else decode_image(data, CONFIG)[0].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == [outcome(data) for data in files]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            with_frame(0xC3),
            "UnsupportedMode",
            "a JPEG that is lossless (marker 0xffc3); expected baseline or progressive",
        ),
        (
            with_frame(0xC9),
            "UnsupportedMode",
            "a JPEG that is arithmetic-coded (marker 0xffc9); expected baseline or progressive",
        ),
        (
            with_frame(0xC5),
            "UnsupportedMode",
            "a JPEG that is hierarchical (marker 0xffc5); expected baseline or progressive",
        ),
        (with_frame(0xC1, bits=12), "UnsupportedMode", "a JPEG of 12 bits a sample; expected 8"),
        (
            with_frame(num_components=2),
            "UnsupportedMode",
            "a JPEG of 2 components; expected 1 (grey), 3 or 4",
        ),
        (with_frame(height=0), "UnsupportedMode", "a JPEG that declares 176x0 pixels before its picture"),
        (with_frame(0xF0), "Corrupt", "marker 0xfff0 before the picture"),
        (b"\xff\xd8\xff\xd9", "Corrupt", "marker 0xffd9 before the picture"),
        (b"\xff\xd8\xff\xda\0\x02", "Corrupt", "its picture begins before its size is declared"),
        (clean(ENCODINGS[0], 0)[:100], "Truncated", "it ends inside of its segment 0xffdb"),
        (clean(ENCODINGS[0], 0)[:20], "Truncated", "it ends before its picture begins"),
    ],
)
def test_what_is_refused_by_its_header(data, error, message):
    found = refusal(data)
    assert found is not None and found.error == error
    assert str(found).startswith(message), found


def test_a_size_declared_twice_is_refused():
    data = clean(ENCODINGS[0], 0)
    frame = segment(0xC0, data[data.index(b"\xff\xc0") + 4 :][:15])
    assert str(refusal(data[:20] + frame + data[20:])) == "its size is declared twice"


def test_scans_are_limited(monkeypatch: pytest.MonkeyPatch):
    progressive = clean((True, 0, 2), 0)
    num_scans = len(re.findall(rb"\xff\xda", progressive))
    monkeypatch.setattr(jpeg, "_MAX_SCANS", num_scans)
    assert refusal(progressive) is None
    monkeypatch.setattr(jpeg, "_MAX_SCANS", num_scans - 1)
    assert str(refusal(progressive)) == f"more than {num_scans - 1} scans; encoders write 20 at most"
    assert refusal(clean((False, 0, 2), 0)) is None


def test_a_sampling_that_only_pillow_takes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jpeg, "_told", set())
    data = bytearray(clean((False, 0, 2), 0))
    at = data.index(b"\xff\xc0")
    assert (data[at + 11], data[at + 14], data[at + 17]) == (0x22, 0x11, 0x11)
    data[at + 11], data[at + 14], data[at + 17] = 0x21, 0x12, 0x21  # as many blocks
    expected = pixels_of_pillow(bytes(data))[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT]
    for _ in range(2):
        np.testing.assert_array_equal(decode_image(bytes(data), CONFIG)[0], expected)
    assert [record.message for record in caplog.records] == [
        "a JPEG of a rare chroma subsampling is decoded by Pillow: in such files damage that libjpeg only warns of "
        "(cut and closed files, lost sectors, flipped bits) goes unseen"
    ]


def test_without_simplejpeg(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert f"/simplejpeg-{simplejpeg.__version__}/" in decoder_version()
    whole, progressive = clean((False, 0, 2), 0), clean((True, 0, 0), 0)
    expected = [decode_image(data, CONFIG)[0] for data in (whole, progressive)]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    monkeypatch.setattr(jpeg, "_told", set())
    assert "simplejpeg-none" in decoder_version()
    for data, pixels in zip((whole, progressive), expected, strict=True):
        np.testing.assert_array_equal(decode_image(data, CONFIG)[0], pixels)
    assert refusal(cut_and_close(whole, np.random.default_rng(0))) is None
    assert len(caplog.records) == 1
    assert caplog.records[0].message.startswith(
        "simplejpeg is not installed, so Pillow decodes JPEGs: damage that "
    )
