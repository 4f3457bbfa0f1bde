"""A writer of TIFF that writes whatever its tags can say of pixels: no other writer will write most of it."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import imagecodecs
import numpy as np

from tests.image_files.case import (
    SIDE,
    pack_bits,
)

_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 16: "Q"}
Order = Literal["<", ">"]
ORDERS: tuple[Order, Order] = ("<", ">")
SHAPES = ((SIDE, 0), (16, 0), (SIDE, 16), (SIDE, 32))  # rows of a strip, side of a tile
Tag = tuple[int, int, Sequence[int]]  # number, type, values
NONE, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE = 1, 5, 7, 8, 32773, 32946
LZMA, ZSTD, WEBP = 34925, 50000, 50001
COMPRESS: dict[int, Callable[..., Any]] = {
    NONE: bytes,
    LZW: imagecodecs.lzw_encode,
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    LZMA: lzma.compress,
    ZSTD: imagecodecs.zstd_encode,
}
_NAMES = {
    NONE: "uncompressed", LZW: "LZW", JPEG: "JPEG", DEFLATE: "deflate", PACKBITS: "PackBits",
    OLD_DEFLATE: "old deflate", LZMA: "LZMA", ZSTD: "Zstandard", WEBP: "WebP",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How values become a file."""

    bits: int
    photometric: int
    extra: tuple[int, ...] = ()
    sample_format: int = 1
    order: Order = "<"
    compression: int = NONE
    predictor: int = 1
    is_planar: bool = False
    fill_order: int = 1
    rows: int = SIDE  # of a strip
    tile: int = 0  # its side; 0: strips
    is_big: bool = False
    tags: tuple[Tag, ...] = ()
    encode: Callable[[np.ndarray], bytes] | None = field(default=None, compare=False)  # of lossy compressions

    def __str__(self) -> str:
        parts = [_NAMES[self.compression], "II" if self.order == "<" else "MM"]
        parts += ["planes"] if self.is_planar else []
        parts += [f"predictor {self.predictor}"] if self.predictor > 1 else []
        parts += [f"fill order {self.fill_order}"] if self.fill_order > 1 else []
        parts += [f"tiles of {self.tile}"] if self.tile else [f"strips of {self.rows}"]
        parts += ["BigTIFF"] if self.is_big else []
        return ", ".join(parts)


def tiff(values: np.ndarray, layout: Layout) -> bytes:
    """A file of values (H, W) or (H, W, samples), unsigned, signed or float."""
    values = values if values.ndim == 3 else values[..., None]
    num_samples = values.shape[2]
    planes = [values[..., i : i + 1] for i in range(num_samples)] if layout.is_planar else [values]
    segments = [_encode(part, layout) for plane in planes for part in _cut(plane, layout)]
    tags: list[Tag] = [
        (256, 3, [values.shape[1]]), (257, 3, [values.shape[0]]), (258, 3, [layout.bits] * num_samples),
        (259, 3, [layout.compression]), (262, 3, [layout.photometric]), (277, 3, [num_samples]),
        (284, 3, [2 if layout.is_planar else 1]),
    ]  # fmt: skip
    if layout.tile:
        tags += [(322, 3, [layout.tile]), (323, 3, [layout.tile])]
    else:
        tags.append((278, 3, [layout.rows]))
    if layout.extra:
        tags.append((338, 3, layout.extra))
    if layout.sample_format != 1:
        tags.append((339, 3, [layout.sample_format] * num_samples))
    if layout.predictor > 1:
        tags.append((317, 3, [layout.predictor]))
    if layout.fill_order > 1:
        tags.append((266, 3, [layout.fill_order]))
    return _assemble(segments, [*tags, *layout.tags], layout)


def _cut(plane: np.ndarray, layout: Layout) -> list[np.ndarray]:
    height, width = plane.shape[:2]
    if not layout.tile:
        return [plane[y : y + layout.rows] for y in range(0, height, layout.rows)]
    side = layout.tile
    padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    return [
        padded[y : y + side, x : x + side]
        for y in range(0, padded.shape[0], side)
        for x in range(0, padded.shape[1], side)
    ]


def _encode(part: np.ndarray, layout: Layout) -> bytes:
    if layout.encode is not None:
        return layout.encode(np.ascontiguousarray(part))
    if layout.predictor == 2:
        part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
    flat = part.reshape(len(part), -1)
    if layout.bits >= 8 and layout.bits % 8 == 0:
        rows = [row.astype(row.dtype.newbyteorder(layout.order)).tobytes() for row in flat]
    else:
        rows = pack_bits(flat, layout.bits)
    if layout.compression == PACKBITS:
        data = b"".join(imagecodecs.packbits_encode(row) for row in rows)
    else:
        data = COMPRESS[layout.compression](b"".join(rows))
    return bytes(_REVERSED[byte] for byte in data) if layout.fill_order == 2 else data


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _assemble(segments: list[bytes], tags: list[Tag], layout: Layout) -> bytes:
    order, is_big = layout.order, layout.is_big
    body, offsets = b"", []
    start = 16 if is_big else 8
    for segment in segments:
        offsets.append(start + len(body))
        body += segment + bytes(len(segment) % 2)
    number, count = (324, 325) if layout.tile else (273, 279)
    tags = sorted([*tags, (number, 4, offsets), (count, 4, [len(s) for s in segments])])
    entry_bytes, inline = (20, 8) if is_big else (12, 4)
    directory_at = start + len(body)
    values_at = directory_at + (8 if is_big else 2) + entry_bytes * len(tags) + (8 if is_big else 4)
    entries = values = b""
    size = "Q" if is_big else "I"
    for tag, kind, numbers in tags:
        raw = struct.pack(f"{order}{len(numbers)}{_TYPES[kind][0]}", *numbers)
        length = len(numbers) // 2 if kind == 5 else len(numbers)
        if len(raw) > inline:
            field_value = struct.pack(order + size, values_at + len(values))
            values += raw + bytes(len(raw) % 2)
        else:
            field_value = raw.ljust(inline, b"\0")
        entries += struct.pack(order + "HH" + size, tag, kind, length) + field_value
    magic = b"II" if order == "<" else b"MM"
    head = (
        magic
        + (struct.pack(order + "HHH", 43, 8, 0) if is_big else struct.pack(order + "H", 42))
        + struct.pack(order + size, directory_at)
    )
    number_of_tags = struct.pack(order + ("Q" if is_big else "H"), len(tags))
    return head + body + number_of_tags + entries + bytes(8 if is_big else 4) + values
