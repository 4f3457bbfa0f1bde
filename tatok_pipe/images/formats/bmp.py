"""BMP: a table of the layouts that come out right, two repairs, and what of run-length coding is trusted."""

from __future__ import annotations

import struct

from PIL import Image

from tatok_pipe.images.errors import DecodeError, unsupported_mode
from tatok_pipe.images.formats.reading import Reader, Reading

_FILE_HEADER_BYTES = 14
_CORE_HEADER, _OS2_HEADER = 12, 64
_HEADERS = (_CORE_HEADER, 40, 52, 56, _OS2_HEADER, 108, 124)
_PLAIN, _RLE8, _RLE4, _MASKS = 0, 1, 2, 3
# bits of a pixel -> how it may be stored
_TRUSTED = {
    1: (_PLAIN,),
    4: (_PLAIN, _RLE4),
    8: (_PLAIN, _RLE8),
    16: (_PLAIN, _MASKS),
    24: (_PLAIN,),
    32: (_PLAIN, _MASKS),
}
# bits of a pixel -> masks of red, green, blue and alpha
_TRUSTED_MASKS = {
    16: ((0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)),
    32: (
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    ),
}  # fmt: skip
_COLOURS_AT = 46  # how many colours the palette has; 0: all


def _read(data: bytes) -> Reading:
    """Raises DecodeError for layouts that are not in the table. What is cut off is left to Pillow to explain."""
    if len(data) < _FILE_HEADER_BYTES + _CORE_HEADER:
        return Reading(data)
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in _HEADERS:
        if _CORE_HEADER < size < _OS2_HEADER:
            raise unsupported_mode(f"a BMP with a header of {size} bytes")
        raise DecodeError("Corrupt", f"no BMP has a header of {size} bytes")
    if size == _CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
        storage = _PLAIN
    elif len(data) < _FILE_HEADER_BYTES + size:
        return Reading(data)
    else:
        width, height, _, bits, storage = struct.unpack_from("<iiHHI", data, 18)
    if storage not in _TRUSTED.get(bits, ()) or (size == _OS2_HEADER and storage == _MASKS):
        raise unsupported_mode(f"a BMP of {bits} bits a pixel, compression {storage}")
    if storage == _MASKS:
        _check_masks(data, size, bits)
    if storage in (_RLE8, _RLE4) and not _covers(data, offset, width, abs(height), storage):
        raise unsupported_mode("a run-length BMP whose runs leave pixels out, or cross the ends of rows")
    if bits in (4, 8):
        data = _with_whole_palette(data, size, bits)
    return Reading(data, after_load=_without_empty_alpha)


def _check_masks(data: bytes, size: int, bits: int) -> None:
    masks = list(struct.unpack_from("<3I", data.ljust(66, b"\0"), 54))
    masks += struct.unpack_from("<I", data, 66) if size >= 56 else [0]
    if tuple(masks) not in _TRUSTED_MASKS[bits]:
        shown = ", ".join(f"{mask:#x}" for mask in masks)
        raise unsupported_mode(f"a BMP of {bits} bits a pixel with these masks: {shown}")


def _covers(data: bytes, at: int, width: int, height: int, storage: int) -> bool:
    """Whether the runs fill every row to its end and no further, the only case in which readers agree."""
    if at % 2:  # Pillow aligns to the file, not to the runs
        return False
    x = y = 0
    try:
        while y < height:
            count, value = data[at], data[at + 1]
            at += 2
            if count:
                x += count
            elif value == 0:
                if x != width:
                    return False
                x, y = 0, y + 1
            elif value == 1:
                return x == width and y == height - 1
            elif value == 2:
                return False
            else:
                x += value
                num_bytes = value if storage == _RLE8 else (value + 1) // 2
                at += num_bytes + num_bytes % 2
            if x > width:
                return False
    except IndexError:
        pass  # cut off, as Pillow will say
    return True


def _with_whole_palette(data: bytes, size: int, bits: int) -> bytes:
    """The file with a palette that Pillow does not take for a ramp of grey of another number of bits."""
    num_colours, entry_bytes = 1 << bits, 3
    if size != _CORE_HEADER:
        num_colours, entry_bytes = struct.unpack_from("<I", data, _COLOURS_AT)[0] or num_colours, 4
    greys = (0, 255) if num_colours == 2 else range(min(num_colours, 256))
    start = _FILE_HEADER_BYTES + size
    for index, grey in enumerate(greys):
        at = start + entry_bytes * index
        if data[at : at + 3] != bytes([grey] * 3):
            return data
    if bits == 8 and num_colours > 2:
        return data  # a ramp of 8 bits it is
    if num_colours > 2:
        raise unsupported_mode("a BMP of 4 bits a pixel with a palette of greys from 0 to 15 of 255")
    # More colours than the file has: what follows is read as colours that no pixel has.
    return data[:_COLOURS_AT] + struct.pack("<I", 1 << bits) + data[_COLOURS_AT + 4 :]


def _without_empty_alpha(image: Image.Image) -> Image.Image:
    """Many programs write a mask for alpha and zeros in it; readers show such pictures as opaque."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


READER = Reader(_read)
