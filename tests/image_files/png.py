"""PNG of every colour type, depth, transparency, filter, interlacing and animation, and with chunks of all sorts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from tests.image_files.case import (
    SIDE,
    Case,
    alpha,
    few_colours,
    grey,
    levels,
    over_white,
    pack_bits,
    picture,
    shown,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_NAMES = {
    _GREY: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    _GREY_ALPHA: "grey and alpha",
    _RGBA: "RGB and alpha",
}
# First column and row, and the steps, of Adam7's passes.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes, *, is_right: bool = True) -> bytes:
    checksum = zlib.crc32(kind + data) ^ (0 if is_right else 1)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    values: np.ndarray,
    bits: int,
    colour: int,
    *extra: bytes,
    filter: int = 0,
    is_interlaced: bool = False,
    num_parts: int = 1,
) -> bytes:
    """A file of values (H, W) or (H, W, samples); `extra` chunks stand before the pixels."""
    values = values if values.ndim == 3 else values[..., None]
    passes = [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if is_interlaced else [values]
    raw = b"".join(_filtered(part, bits, filter) for part in passes if part.size)
    packed = zlib.compress(raw)
    cuts = [len(packed) * i // num_parts for i in range(num_parts + 1)]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, is_interlaced)
    pixels = [chunk(b"IDAT", packed[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *extra, *pixels, chunk(b"IEND", b"")])


def _filtered(values: np.ndarray, bits: int, filter: int) -> bytes:
    flat = values.reshape(len(values), -1)
    rows = [row.astype(">u2").tobytes() for row in flat] if bits == 16 else pack_bits(flat, bits)
    step = max(1, values.shape[2] * bits // 8)
    out, above = [], bytes(len(rows[0]))
    for row in rows:
        now, up = np.frombuffer(row, np.uint8).astype(int), np.frombuffer(above, np.uint8).astype(int)
        left, corner = (np.concatenate([np.zeros(step, int), line])[: len(line)] for line in (now, up))
        distance = [abs(left + up - corner - near) for near in (left, up, corner)]
        paeth = np.where(
            (distance[0] <= distance[1]) & (distance[0] <= distance[2]),
            left,
            np.where(distance[1] <= distance[2], up, corner),
        )
        guess = (0, left, up, (left + up) // 2, paeth)[filter]
        out.append(bytes([filter]) + ((now - guess) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(out)


def png_cases() -> Iterator[Case]:
    yield from _depths()
    yield from _palettes()
    yield from _keys()
    yield from _chunks()
    yield from _animations()


def _samples(colour: int, bits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values, and what they show."""
    colours = levels(grey(seed) if colour in (_GREY, _GREY_ALPHA) else picture(seed), bits)
    if colour in (_GREY, _RGB):
        return colours, shown(colours, bits)
    opacity = levels(alpha(), bits)
    truth = over_white(shown(colours, bits), opacity / (2**bits - 1) * 255)
    return np.dstack([colours, opacity]), truth


def _depths() -> Iterator[Case]:
    kinds = [(_GREY, bits) for bits in (1, 2, 4, 8, 16)]
    kinds += [(colour, bits) for colour in (_RGB, _GREY_ALPHA, _RGBA) for bits in (8, 16)]
    for colour, bits in kinds:
        for filter in range(5):
            for is_interlaced in (False, True):
                for num_parts in (1, 5):
                    values, truth = _samples(colour, bits, seed=filter)
                    data = png(
                        values, bits, colour, filter=filter, is_interlaced=is_interlaced, num_parts=num_parts
                    )
                    detail = f"filter {filter}, interlaced {is_interlaced:d}, {num_parts} IDAT"
                    yield Case("PNG", f"{_NAMES[colour]}, {bits} bits", detail, data, truth)


def _palettes() -> Iterator[Case]:
    for bits in (1, 2, 4, 8):
        for count in sorted({2, 1 << bits, (1 << bits) - 1 or 1}):
            for is_interlaced in (False, True):
                for transparency in ("none", "first", "some", "all"):
                    indices, palette = few_colours(count, seed=bits)
                    opacity = np.full(count, 255, np.uint8)
                    if transparency == "first":
                        opacity[0] = 0
                    elif transparency != "none":
                        opacity[: (count + 1) // 2 if transparency == "some" else count] = 100
                    extra = [chunk(b"PLTE", palette.tobytes())]
                    if transparency != "none":
                        cut = {"first": 1, "some": (count + 1) // 2, "all": count}[transparency]
                        extra.append(chunk(b"tRNS", opacity[:cut].tobytes()))
                    truth = over_white(palette[indices], opacity[indices])
                    data = png(indices, bits, _PALETTE, *extra, is_interlaced=is_interlaced)
                    kind = f"palette, {bits} bits" + (", transparency" if transparency != "none" else "")
                    yield Case(
                        "PNG",
                        kind,
                        f"{count} colours, {transparency}, interlaced {is_interlaced:d}",
                        data,
                        truth,
                    )


def _keys() -> Iterator[Case]:
    """One colour is transparent (tRNS)."""
    for colour, bits in ((_GREY, 1), (_GREY, 2), (_GREY, 4), (_GREY, 8), (_GREY, 16), (_RGB, 8), (_RGB, 16)):
        for level in sorted({0, 1, (1 << bits) // 3, (1 << bits) - 1}):
            for is_interlaced in (False, True):
                values, truth = _samples(colour, bits, seed=level % 3)
                values = values.copy()
                values[5:20, 4:21] = level
                is_key = values == level if colour == _GREY else (values == level).all(axis=-1)
                truth = np.where(is_key[..., None], 255, shown(values, bits))
                key = chunk(b"tRNS", struct.pack(">H", level) * (1 if colour == _GREY else 3))
                data = png(values, bits, colour, key, is_interlaced=is_interlaced)
                kind = f"{_NAMES[colour]}, {bits} bits, one colour transparent"
                yield Case("PNG", kind, f"{level}, interlaced {is_interlaced:d}", data, truth)


def _chunks() -> Iterator[Case]:
    """Chunks that do not change the picture, some of them broken."""
    text = b"Comment\0" + b"a picture"
    packed = b"Comment\0\0" + zlib.compress(b"a picture " * 100)
    others = {
        "text": chunk(b"tEXt", text),
        "packed text": chunk(b"zTXt", packed),
        "resolution": chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        "time": chunk(b"tIME", struct.pack(">HBBBBB", 2026, 1, 2, 3, 4, 5)),
        "private": chunk(b"prVt", b"anything"),
    }
    wrong = {
        "text": chunk(b"tEXt", text, is_right=False),
        "packed text": chunk(b"zTXt", packed, is_right=False),
        "resolution": chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1), is_right=False),
        "time": chunk(b"tIME", struct.pack(">HBBBBB", 2026, 1, 2, 3, 4, 5), is_right=False),
        "private": chunk(b"prVt", b"anything", is_right=False),
        "transparency": chunk(b"tRNS", struct.pack(">3H", *picture()[0, 0]), is_right=False),
    }
    for name, extra in others.items():
        yield Case("PNG", "with other chunks", name, png(picture(), 8, _RGB, extra), picture())
    for name, extra in wrong.items():
        kind = "a wrong checksum in a chunk that is not critical"
        yield Case("PNG", kind, name, png(picture(), 8, _RGB, extra), picture())
    whole = png(picture(), 8, _RGB)
    for name in (b"IHDR", b"IDAT"):
        at = whole.index(name)
        end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
        broken = whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :]
        yield Case("PNG", "a wrong checksum in a critical chunk", name.decode(), broken, refused="Corrupt")


def _animations() -> Iterator[Case]:
    """The default image is a frame of the animation, or is not."""
    control = chunk(b"acTL", struct.pack(">II", 2, 0))
    other = zlib.compress(_filtered(picture(3), 8, 0))

    def frame(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, SIDE, SIDE, 0, 0, 1, 10, 0, 0))

    for is_frame in (True, False):
        plain = png(picture(), 8, _RGB, control, *([frame(0)] if is_frame else []))
        end = plain.index(b"IEND") - 4
        frames = [frame(1), chunk(b"fdAT", struct.pack(">I", 2) + other)]
        if not is_frame:
            frames = [frame(0), chunk(b"fdAT", struct.pack(">I", 1) + other)]
            frames += [frame(2), chunk(b"fdAT", struct.pack(">I", 3) + other)]
        data = plain[:end] + b"".join(frames) + plain[end:]
        yield Case("PNG", "animation: its default image", f"a frame of it: {is_frame}", data, picture())
