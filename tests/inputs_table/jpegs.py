"""JPEGs: which kinds are read, and what damage and oddities become."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import simplejpeg

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig
from tests.image_files.jpegs import (
    DAMAGES,
    ENCODINGS,
    HEIGHT,
    clean,
    encode,
    photograph,
    quirky,
    with_frame,
)

_TEXT = """### JPEG

Decoded through simplejpeg, whose pixels are Pillow's; what its libjpeg warns of in the picture is refused, in libjpeg's
own words. Oddities that cost no pixels are let pass: the pixels of all of those below are compared with the clean
file's. Where simplejpeg has no wheel Pillow decodes, damage goes unseen, and the log says so. More than 100 scans are
`Corrupt`. Every damaged file here ends as it should.

| kind | files | |
|---|---|---|
"""
_CONFIG = PreprocessConfig(image_size=HEIGHT)
_NUM_SEEDS = 6


def jpeg_section() -> str:
    rows = [*_kinds(), *_damage(), *_oddities(), *_headers()]
    return _TEXT + "\n".join(f"| {kind} | {len(files)} | {_describe(files)} |" for kind, files in rows)


def _kinds() -> Iterable[tuple[str, list[bytes]]]:
    yield (
        "baseline and progressive, with and without restarts, 4:4:4 and 4:2:0",
        [clean(encoding, seed) for encoding, seed in product(ENCODINGS, range(2))],
    )
    pixels = np.asarray(photograph(0))
    rest = [simplejpeg.encode_jpeg(pixels, colorsubsampling=each) for each in ("422", "440", "411")]
    yield "4:2:2, 4:4:0, 4:1:1", rest
    for mode, told in (("L", "grey"), ("CMYK", "CMYK")):
        picture = photograph(0).convert(mode)
        yield told, [encode(picture, progressive=progressive) for progressive in (False, True)]
    yield "RGB without a transform of colours", [encode(photograph(0), keep_rgb=True)]


def _damage() -> Iterable[tuple[str, list[bytes]]]:
    told = ("cut, and closed by the writer", "a sector of 512 bytes became zeros", "one bit flipped")
    for name, damage in zip(told, DAMAGES, strict=True):
        yield (
            name,
            [
                damage(clean(encoding, seed), np.random.default_rng((number, seed)))
                for (number, encoding), seed in product(enumerate(ENCODINGS), range(_NUM_SEEDS))
            ],
        )


def _oddities() -> Iterable[tuple[str, list[bytes]]]:
    found: dict[str, list[bytes]] = {}
    for quirk, _, _, changed in quirky():
        found.setdefault(quirk.__name__.replace("_", " "), []).append(changed)
    yield from found.items()


def _headers() -> Iterable[tuple[str, list[bytes]]]:
    yield "lossless", [with_frame(0xC3)]
    yield "arithmetic-coded", [with_frame(0xC9)]
    yield "hierarchical", [with_frame(0xC5)]
    yield "12 bits a sample", [with_frame(0xC1, bits=12)]
    yield "2 components", [with_frame(num_components=2)]
    yield "its height stands behind the first scan (DNL)", [with_frame(height=0)]
    yield "without its end", [clean(encoding, 0)[: -len(clean(encoding, 0)) // 3] for encoding in ENCODINGS]


def _describe(files: list[bytes]) -> str:
    outcomes = [_outcome(data) for data in files]
    refused = [each for each in outcomes if each]
    if not refused:
        return "read"
    words = ", ".join(f"`{word}`" for word in sorted(set(refused)))
    if len(refused) == len(files):
        return words
    return (
        f"{len(refused)} of them {words}; the others are read, since their codes happen to be valid and libjpeg has "
        "nothing to say"
    )


def _outcome(data: bytes) -> str:
    """The error class; nothing where it is read."""
    try:
        decode_image(data, _CONFIG)
    except DecodeError as error:
        return error.error
    return ""
