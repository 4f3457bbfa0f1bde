"""JPEGs of one photograph-like picture: whole, damaged in their scans, with quirks, and of kinds that are not read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 176, 120
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


def with_frame(marker: int = 0xC0, *, bits: int = 8, height: int = HEIGHT, num_components: int = 3) -> bytes:
    data = bytearray(clean(ENCODINGS[0], 0))
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker
    data[at + 4], data[at + 5 : at + 7], data[at + 9] = bits, height.to_bytes(2), num_components
    return bytes(data)
