"""PNG: the chunks that decide the picture, and nothing else, go to Pillow.

Text is not needed, so no limit on it is needed but for bombs. As in libpng an ancillary chunk that is broken,
repeated or out of place counts as not there, and a critical one that is broken means the image is. Of an animation
the default image is taken. Gamma, chromaticities and sBIT are ignored, as other decoders do; an ICC profile is not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from tatok_pipe.images.errors import DecodeError, unsupported_mode
from tatok_pipe.images.formats.reading import Reader, Reading, grey16_to_grey8

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of a profile and all compressed text together, once inflated.
MAX_INFLATED_BYTES = 16 << 20
_STEP_BYTES = 1 << 16

_GREY, _RGB, _PALETTE = 0, 2, 3
_BITS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# What stands before the compressed data in the chunks that are inflated: so many NUL-ended strings, behind the first
# of them so many bytes of flags.
_COMPRESSED = {b"zTXt": (1, 1), b"iTXt": (3, 2), b"iCCP": (1, 1)}


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    start: int  # of its length field
    data: memoryview
    is_whole: bool
    has_right_checksum: bool

    @property
    def is_critical(self) -> bool:
        return not self.kind[0] & 32


def _read(data: bytes) -> Reading:
    """Raises DecodeError where Pillow would show another picture, and for broken critical chunks."""
    pixels: bytearray | None = None
    ancillary: dict[bytes, bytes] = {}
    header = palette = b""
    num_inflated = 0
    for chunk in _chunks(data):
        kind = chunk.kind
        if chunk.is_critical:
            _check_critical(chunk, is_first=not header)
        elif not chunk.is_whole:
            break
        if kind == b"IHDR":
            header = header or bytes(chunk.data)
            _check_header(header)
        elif kind == b"PLTE":
            palette = palette or bytes(chunk.data)
        elif kind == b"IDAT":
            pixels = bytearray() if pixels is None else pixels
            pixels += chunk.data
        elif kind == b"IEND":
            break
        elif kind in _COMPRESSED:
            num_inflated, inflated = _inflate(chunk, num_inflated)
            if kind == b"iCCP" and inflated and pixels is None and chunk.has_right_checksum:
                ancillary.setdefault(kind, inflated)
        elif chunk.has_right_checksum and (
            kind == b"eXIf" or (kind == b"tRNS" and pixels is None and (palette or header[9] != _PALETTE))
        ):
            ancillary.setdefault(kind, bytes(chunk.data))
    if pixels is None:
        raise DecodeError("Truncated", "the PNG ends before its pixels")
    if header[9] == _PALETTE and not palette:
        raise DecodeError("Corrupt", "a PNG with a palette, without the palette")
    return _rebuild(header, palette, ancillary, pixels)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """All chunks, in order, up to what is no chunk."""
    view = memoryview(data)
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        if not kind.isalpha():
            break
        end = at + 8 + length
        body, is_whole = view[at + 8 : end], end + 4 <= len(data)
        expected = int.from_bytes(data[end : end + 4], "big")
        # Checked where it matters only: text and the like may be large, and goes nowhere.
        is_checked = not kind[0] & 32 or kind in (b"tRNS", b"eXIf", b"iCCP")
        is_right = is_whole and (not is_checked or zlib.crc32(body, zlib.crc32(kind)) == expected)
        yield _Chunk(kind, at, body, is_whole, is_right)
        at = end + 4


def _check_critical(chunk: _Chunk, *, is_first: bool) -> None:
    name = chunk.kind.decode("ascii")
    if is_first and name == "CgBI":
        raise unsupported_mode("a PNG as Apple's tools change it for phones (CgBI)")
    if name == "IEND":
        return
    if is_first and name != "IHDR":
        raise DecodeError("Corrupt", f"a PNG that begins with {name}, expected IHDR")
    if not chunk.is_whole:
        raise DecodeError("Truncated", f"the PNG ends inside its {name} chunk")
    if not chunk.has_right_checksum:
        raise DecodeError("Corrupt", f"the checksum of the PNG's {name} chunk is wrong")
    if name not in ("IHDR", "PLTE", "IDAT"):
        raise unsupported_mode(f"a PNG with a chunk {name}, without which it cannot be understood")


def _check_header(header: bytes) -> None:
    if len(header) != 13:
        raise DecodeError("Corrupt", f"the PNG's IHDR chunk has {len(header)} bytes, expected 13")
    bits, colour, compression, filters, interlace = header[8:]
    if bits not in _BITS.get(colour, ()) or compression or filters or interlace > 1:
        raise DecodeError(
            "Corrupt",
            f"no PNG has {bits} bits of colour type {colour}, compression {compression}, filter {filters}, "
            f"interlace {interlace}",
        )


def _inflate(chunk: _Chunk, num_before: int) -> tuple[int, bytes]:
    """Bytes inflated so far, and those of this chunk where it is a profile. What is no zlib stream counts as none."""
    num_strings, num_flags = _COMPRESSED[chunk.kind]
    parts = bytes(chunk.data).split(b"\0", 1)
    if len(parts) < 2 or len(parts[1]) < num_flags or (chunk.kind == b"iTXt" and parts[1][0] != 1):
        return num_before, b""
    packed = parts[1][num_flags:]
    for _ in range(num_strings - 1):
        packed = packed.partition(b"\0")[2]
    inflater, kept, total = zlib.decompressobj(), [], num_before
    try:
        while packed and not inflater.eof:
            piece = inflater.decompress(packed, _STEP_BYTES)
            packed = inflater.unconsumed_tail
            total += len(piece)
            if total > MAX_INFLATED_BYTES:
                name = chunk.kind.decode("ascii")
                raise DecodeError(
                    "TooManyBytes",
                    f"text and profile of the PNG ({name}) are too large: more than {MAX_INFLATED_BYTES} bytes",
                )
            if chunk.kind == b"iCCP":
                kept.append(piece)
    except zlib.error:
        return total, b""
    return total, b"".join(kept) if inflater.eof else b""


def _rebuild(header: bytes, palette: bytes, ancillary: dict[bytes, bytes], pixels: bytearray) -> Reading:
    bits, colour = header[8], header[9]
    key = ancillary.get(b"tRNS", b"")
    if colour in (_GREY, _RGB) and key:
        key = _mask_key(key, bits, colour)
    elif colour != _PALETTE:
        key = b""
    pieces: list[bytes | bytearray] = [SIGNATURE, _chunk(b"IHDR", header)]
    if palette and colour == _PALETTE:
        pieces.append(_chunk(b"PLTE", palette))
    if key:
        pieces.append(_chunk(b"tRNS", key))
    if b"eXIf" in ancillary:
        pieces.append(_chunk(b"eXIf", ancillary[b"eXIf"]))
    # Pillow does not look at IDAT's checksum, which was checked above.
    pieces += [struct.pack(">I", len(pixels)), b"IDAT", pixels, bytes(4), _chunk(b"IEND", b"")]

    def to_grey8(image: Image.Image) -> Image.Image:
        return grey16_to_grey8(image, transparent=int.from_bytes(key, "big") if key else None)

    return Reading(
        b"".join(pieces),
        profile=ancillary.get(b"iCCP"),
        after_load=to_grey8 if (bits, colour) == (16, _GREY) else None,
    )


def _mask_key(key: bytes, bits: int, colour: int) -> bytes:
    """The transparent colour as Pillow compares it: with pixels that it has scaled to 8 bits."""
    count = 1 if colour == _GREY else 3
    if len(key) < 2 * count:
        return b""
    if (bits, colour) == (16, _RGB):
        raise unsupported_mode("a PNG of 3 x 16 bits with a transparent colour")
    white = (1 << bits) - 1
    scale = 255 // white if bits in (2, 4) else 1
    return struct.pack(
        f">{count}H", *((value & white) * scale for value in struct.unpack_from(f">{count}H", key))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


READER = Reader(_read)
