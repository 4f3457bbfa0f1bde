"""JPEGs that libjpeg only warns of: what lost pixels is refused, what did not keeps its pixels.

The oracle is OpenCV, whose libjpeg is another build and leaves its first warning on stderr.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tatok_pipe.images.decode import DecodeError, PreprocessConfig, decode_image, decoder_version
from tatok_pipe.images.formats import jpeg
from tatok_pipe.images.formats.jpeg import load_jpeg, read_jpeg
from tatok_pipe.images.shards import read_samples
from tatok_pipe.records import ImageSample

REAL_SHARD = Path(__file__).parents[4] / "shared/data/imagenet-sample/000000.tar"
WIDTH, HEIGHT = 176, 120
CONFIG = PreprocessConfig(image_size=HEIGHT)  # so that the crop is not scaled, and shows every row
# progressive, MCUs between restarts, Pillow's subsampling (0: 4:4:4, 2: 4:2:0)
ENCODINGS = tuple(product((False, True), (0, 5), (0, 2)))
Encoding = tuple[bool, int, int]


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def photograph(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth shapes, edges and grain."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    for _ in range(4):
        x, y = random.integers(0, width), random.integers(0, height)
        pixels[y : y + 40, x : x + 30] = random.integers(0, 256, 3)
    return Image.fromarray((pixels + random.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


@cache
def clean(encoding: Encoding, seed: int) -> bytes:
    progressive, restart, subsampling = encoding
    options = {"restart_marker_blocks": restart} if restart else {}
    return encode(photograph(seed), quality=85, progressive=progressive, subsampling=subsampling, **options)


def scan_start(data: bytes) -> int:
    """Where the data of the first scan begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4])


def is_progressive(data: bytes) -> bool:
    return b"\xff\xc2" in data[: scan_start(data)]


def cut_and_close(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(scan_start(data) + 20, len(data) - 40)] + b"\xff\xd9"


def lose_a_sector(data: bytes, random: np.random.Generator) -> bytes:
    """512 bytes on their boundary became zeros."""
    start = 512 * random.integers(scan_start(data) // 512 + 1, (len(data) - 2) // 512)
    return data[:start] + bytes(512) + data[start + 512 :]


def flip_a_bit(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    damaged[random.integers(scan_start(data), len(data) - 2)] ^= 1 << random.integers(8)
    return bytes(damaged)


DAMAGES = (cut_and_close, lose_a_sector, flip_a_bit)


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


def header_boundaries(data: bytes) -> list[int]:
    """Where the segments before the first scan begin, and where its header does."""
    places, position = [], 2
    while data[position + 1] != 0xDA:
        places.append(position)
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return [*places, position]


def insert_in_header(data: bytes, random: np.random.Generator, inserted: bytes) -> bytes:
    place = int(random.choice(header_boundaries(data)[1:]))  # behind JFIF, where metadata have their place
    return data[:place] + inserted + data[place:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def stray_bytes(data: bytes, random: np.random.Generator) -> bytes:
    return insert_in_header(
        data, random, random.integers(0, 255, random.integers(1, 300), np.uint8).tobytes()
    )


def fill_bytes(data: bytes, random: np.random.Generator) -> bytes:
    return insert_in_header(data, random, b"\xff" * int(random.integers(1, 9)))


def fill_bytes_at_the_end(data: bytes, random: np.random.Generator) -> bytes:
    return data[:-2] + b"\xff" * int(random.integers(1, 9)) + data[-2:]


def padding_of_zeros(data: bytes, random: np.random.Generator) -> bytes:
    if is_progressive(data):
        return data
    return data[:-2] + bytes(int(random.integers(1, 600))) + data[-2:]


def padding_of_ones(data: bytes, random: np.random.Generator) -> bytes:
    if is_progressive(data):
        return data
    return data[:-2] + b"\xff\x00" * int(random.integers(1, 20)) + data[-2:]


def nonsense_of_a_sequential_scan(data: bytes, random: np.random.Generator) -> bytes:
    if is_progressive(data):
        return data  # there they make sense
    start = scan_start(data)
    return data[: start - 3] + random.integers(0, 64, 3, np.uint8).tobytes() + data[start:]


def garbage_behind_the_end(data: bytes, random: np.random.Generator) -> bytes:
    return data + random.bytes(int(random.integers(1, 900))) + data[: random.integers(len(data))]


def unknown_revision_of_jfif(data: bytes, random: np.random.Generator) -> bytes:
    at = data.index(b"JFIF\0") + 5
    return data[:at] + random.integers(3, 256, 2, np.uint8).tobytes() + data[at + 2 :]


def unknown_transform_of_adobe(data: bytes, random: np.random.Generator) -> bytes:
    """JFIF goes before Adobe, so it has to go."""
    at = data.index(b"\xff\xe0")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([int(random.integers(3, 256))]))
    return data[:at] + adobe + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]


def application_data(data: bytes, random: np.random.Generator) -> bytes:
    thumbnail = encode(photograph(0, 32, 24)) + b"\xff\xd9"
    marker = int(random.choice([0xE3, 0xE5, 0xEA, 0xEF, 0xFE]))
    return insert_in_header(data, random, segment(marker, thumbnail) + segment(0xEC, random.bytes(40)))


def profile_of_which_a_part_is_missing(data: bytes, random: np.random.Generator) -> bytes:
    return insert_in_header(data, random, segment(0xE2, b"ICC_PROFILE\0\2\3" + random.bytes(50)))


QUIRKS = (
    stray_bytes,
    fill_bytes,
    fill_bytes_at_the_end,
    padding_of_zeros,
    padding_of_ones,
    nonsense_of_a_sequential_scan,
    garbage_behind_the_end,
    unknown_revision_of_jfif,
    unknown_transform_of_adobe,
    application_data,
    profile_of_which_a_part_is_missing,
)


def quirky() -> Iterator[tuple[Callable, Encoding, bytes, bytes]]:
    """Quirk, encoding, the clean file, and the one with the quirk."""
    for (number, encoding), quirk, seed in product(enumerate(ENCODINGS), QUIRKS, range(5)):
        whole = clean(encoding, seed)
        changed = quirk(whole, np.random.default_rng((number, seed)))
        if changed != whole:
            yield quirk, encoding, whole, changed


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
        loaded = load_jpeg(image, read_jpeg(data), declared=(width, height))
        assert isinstance(loaded, np.ndarray) or loaded.mode == mode
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
            loaded = load_jpeg(image, read_jpeg(sample.image), declared=image.size)
        assert np.asarray(loaded).tobytes() == Image.open(io.BytesIO(sample.image)).tobytes(), sample.key


def test_threads_share_nothing():
    files = [clean(encoding, 0) for encoding in ENCODINGS] * 8
    files += [cut_and_close(data, np.random.default_rng(0)) for data in files[:8]]

    def outcome(data: bytes) -> str | bytes:
        error = refusal(data)
        return str(error) if error else decode_image(data, CONFIG)[0].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == [outcome(data) for data in files]


def with_frame(marker: int = 0xC0, *, bits: int = 8, height: int = HEIGHT, num_components: int = 3) -> bytes:
    data = bytearray(clean(ENCODINGS[0], 0))
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker
    data[at + 4], data[at + 5 : at + 7], data[at + 9] = bits, height.to_bytes(2), num_components
    return bytes(data)


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
