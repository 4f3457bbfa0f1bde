"""JPEGs through libjpeg-turbo's own interface, which tells what of a picture is lost.

Where a scan is damaged libjpeg goes on, fills in what is missing, and says so in a warning; Pillow drops it. simplejpeg
raises it, but of several only the first, and most first ones are harmless: bytes between two segments, a revision of
JFIF that nobody knows. So what comes before the picture is written anew, without what libjpeg would remark on and
without what does not touch pixels. The first warning is then about a scan, and pixels are lost.
"""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.plain_jpeg import PlainHeader, read_plain
from tatok_pipe.images.formats.reading import Reader

try:
    import simplejpeg
except ImportError:  # there is no wheel for every machine
    simplejpeg = None

logger = logging.getLogger(__name__)

# Encoders write 20 scans at most. One of a dozen bytes makes libjpeg walk over the coefficients of the whole picture.
_MAX_SCANS = 100

# Pillow's mode by the number of components, and simplejpeg's name of it.
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_COLOURSPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}

_SOI, _EOI, _SOS, _APP0, _APP14, _PROGRESSIVE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_OTHER_FRAMES = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic-coded"),
}
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman codes, quantization, restart interval
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_IGNORED = (0xCC, 0xDC, *range(0xE0, 0xF0), 0xFE)  # among them all application data and comments
_EXPECTED = frozenset((*_TABLES, *_FRAMES, *_IGNORED, _SOS))  # before the picture

_JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # restarts are part of a scan

_DAMAGE = "damage that libjpeg only warns of (cut and closed files, lost sectors, flipped bits) goes unseen"
_told: set[str] = set()
_telling = threading.Lock()


@dataclass(frozen=True)
class Jpeg:
    """What of a JPEG makes its pixels."""

    width: int  # pixels
    height: int
    mode: str  # L, RGB or CMYK, as Pillow has it
    is_held_whole: bool  # libjpeg holds the coefficients of the whole picture, at whatever scale it decodes
    stream: bytes  # what libjpeg is given
    scan_at: int  # where in it the data of the first scan begin
    plain: PlainHeader | None  # all that Pillow would find; None: it has to open the file


def decoder_name() -> str:
    """What decodes JPEGs beside Pillow, with its version; or that simplejpeg is not installed."""
    return f"simplejpeg-{simplejpeg.__version__ if simplejpeg is not None else 'none'}"


def read_jpeg(data: bytes) -> Jpeg:
    """The parts of a JPEG that make pixels. `data` begins with FF D8; nothing is decoded. Raises DecodeError."""
    kept: list[bytes] = []
    segments: list[tuple[int, bytes]] = []
    is_gapless = True  # nothing lies between segments
    frame = b""
    has_jfif, transform, is_progressive = False, None, False
    position = 2
    while True:
        end = position
        marker, start, position = _next_marker(data, position)
        if marker is None:
            raise DecodeError("Truncated", "it ends before its picture begins")
        is_gapless &= start == end
        if marker in _ALONE:
            is_gapless = False
            continue
        if kind := _OTHER_FRAMES.get(marker):
            message = f"a JPEG that is {kind} (marker 0xff{marker:02x}); expected baseline or progressive"
            raise DecodeError("UnsupportedMode", message)
        if marker not in _EXPECTED:
            raise DecodeError("Corrupt", f"marker 0xff{marker:02x} before the picture")
        segment, position = _segment(data, marker, position)
        segments.append((marker, segment))
        if marker == _SOS:
            break
        if marker in _TABLES:
            kept.append(segment)
        elif marker in _FRAMES:
            if frame:
                raise DecodeError("Corrupt", "its size is declared twice")
            frame, is_progressive = segment, marker == _PROGRESSIVE
            kept.append(segment)
        elif marker == _APP0:
            has_jfif |= len(segment) >= 18 and segment[4:9] == b"JFIF\0"
        elif marker == _APP14 and len(segment) >= 16 and segment[4:9] == b"Adobe":
            transform = segment[15]
    width, height, num_components = _read_frame(frame)
    # What the colours are is told by these two, as libjpeg understands them.
    told = [_JFIF if has_jfif else b"", _adobe(transform, num_components)]
    has_more_scans = is_progressive or segment[4:5] != bytes([num_components])
    head = b"".join([b"\xff\xd8", *told, *kept, _scan_header(segment, is_progressive)])
    # A view, so that a picture of one scan is copied once.
    scans = _read_scans(data, position, is_progressive) if has_more_scans else memoryview(data)[position:]
    return Jpeg(
        width=width,
        height=height,
        mode=_MODES[num_components],
        is_held_whole=has_more_scans,
        stream=b"".join([head, scans]),
        scan_at=len(head),
        plain=read_plain(segments) if is_gapless else None,
    )


def load_jpeg(jpeg: Jpeg, size: tuple[int, int]) -> np.ndarray | Image.Image | None:
    """Pillow's pixels at `size`, which is all of the picture or 1/2, 1/4 or 1/8 of it, rounded up. (height, width, 3)
    uint8 where they are RGB, for they are cut and scaled faster so; else an image. None: this takes Pillow.
    Thread-safe, and other threads run meanwhile.

    Raises DecodeError where libjpeg says that something of the picture is missing.
    """
    pixels = _decode(jpeg, size)
    if pixels is None or jpeg.mode == "RGB":
        return pixels
    # Pillow takes four components for inverted inks, as Adobe writes them.
    layout = "CMYK;I" if jpeg.mode == "CMYK" else jpeg.mode
    return Image.frombuffer(jpeg.mode, size, pixels, "raw", layout, 0, 1)


def _decode(jpeg: Jpeg, size: tuple[int, int]) -> np.ndarray | None:
    """(height, width, channels) uint8 at `size` (width, height); None: this takes Pillow."""
    if simplejpeg is None:
        _tell_once(f"simplejpeg is not installed, so Pillow decodes JPEGs: {_DAMAGE} on this machine")
        return None
    try:
        return _decode_strictly(jpeg.stream, jpeg, size)
    except ValueError as error:
        text = str(error)
    if "subsampling" in text:  # such as 4:1:0, which this interface does not take
        _tell_once(f"a JPEG of a rare chroma subsampling is decoded by Pillow: in such files {_DAMAGE}")
        return None
    if "extraneous bytes before marker 0xd9" in text and not jpeg.is_held_whole:
        # Bytes are left over. Some cameras write padding, and a picture is whole without it; else a damaged code was
        # taken for a shorter one, and what follows it is in the wrong place. Between restarts and in progressive scans
        # the parts are so short that what is left over may look like padding by chance, so there it is refused.
        with suppress(ValueError):
            return _decode_strictly(_without_padding(jpeg), jpeg, size)
    raise DecodeError("Truncated" if "remature end" in text else "Corrupt", f"libjpeg: {text}")


def _tell_once(text: str) -> None:
    """Log it, once in a process."""
    with _telling:
        if text not in _told:
            _told.add(text)
            logger.warning("%s", text)


def _decode_strictly(data: bytes, jpeg: Jpeg, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    is_scaled = size != (jpeg.width, jpeg.height)
    return simplejpeg.decode_jpeg(  # type: ignore[union-attr]
        data,
        _COLOURSPACES[jpeg.mode],
        min_width=width if is_scaled else 0,
        min_height=height if is_scaled else 0,
        strict=True,
    )


def _without_padding(jpeg: Jpeg) -> bytes:
    """The stream of a JPEG of one scan, without the whole bytes of zeros, or else of ones, before its end."""
    found = _SCAN_END.search(jpeg.stream, jpeg.scan_at)
    end = found.start() if found else len(jpeg.stream)
    data = jpeg.stream[:end].rstrip(b"\xff")
    length = len(data.rstrip(b"\x00"))
    if data[length - 1 : length] == b"\xff":  # the zero that follows 0xff in a scan is no byte of its own
        length += 1
    if length == len(data):
        while data[length - 2 : length] == b"\xff\x00":
            length -= 2
    return data[:length] + jpeg.stream[end:]


def _next_marker(data: bytes, position: int) -> tuple[int | None, int, int]:
    """The next marker's second byte, where the marker begins, and where it ends. None at the end of the data."""
    found = _MARKER.search(data, position)
    return (data[found.end() - 1], found.start(), found.end()) if found else (None, len(data), len(data))


def _segment(data: bytes, marker: int, position: int) -> tuple[bytes, int]:
    """A segment with its marker, whose length stands at `position`, and where it ends."""
    end = position + max(2, int.from_bytes(data[position : position + 2]))  # libjpeg takes 0 and 1 for 2
    if end > len(data):
        raise DecodeError("Truncated", f"it ends inside of its segment 0xff{marker:02x}")
    return data[position - 2 : end], end


def _read_frame(frame: bytes) -> tuple[int, int, int]:
    """Width, height and the number of components of a frame's segment."""
    if len(frame) < 10:
        raise DecodeError("Corrupt", "its picture begins before its size is declared")
    bits, height, width = frame[4], int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    if bits != 8:
        raise DecodeError("UnsupportedMode", f"a JPEG of {bits} bits a sample; expected 8")
    if frame[9] not in _MODES:
        message = f"a JPEG of {frame[9]} components; expected 1 (grey), 3 or 4 (CMYK)"
        raise DecodeError("UnsupportedMode", message)
    if not width or not height:
        # A height may stand behind the first scan (DNL), where libjpeg does not look for it.
        raise DecodeError(
            "UnsupportedMode", f"a JPEG that declares {width}x{height} pixels before its picture"
        )
    return width, height, frame[9]


def _adobe(transform: int | None, num_components: int) -> bytes:
    """Adobe's segment. A transform that is unknown becomes what libjpeg takes it for: YCbCr, or YCCK."""
    if transform is None or num_components == 1:
        return b""
    usual = 1 if num_components == 3 else 2
    return b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform if transform == 0 else usual])


def _scan_header(segment: bytes, is_progressive: bool) -> bytes:
    """The segment that begins a scan. Only a progressive one has a range of coefficients; some encoders write nonsense
    for the others, which libjpeg remarks on and passes over."""
    if is_progressive or len(segment) < 8:
        return segment
    return segment[:-3] + b"\x00\x3f\x00"


def _read_scans(data: bytes, position: int, is_progressive: bool) -> bytes:
    """What is behind the first scan's header, to the end of the picture. All of it is kept: what libjpeg remarks on
    from here on may be the trace of a lost scan."""
    pieces = []
    for _ in range(_MAX_SCANS):
        found = _SCAN_END.search(data, position)
        begin, position = position, found.start() if found else len(data)
        marker = None
        while marker != _SOS:
            marker, start, position = _next_marker(data, position)
            if marker is None or marker == _EOI:
                return b"".join([*pieces, data[begin:position]])
            if marker not in _ALONE:
                segment, position = _segment(data, marker, position)
        pieces += [data[begin:start], _scan_header(segment, is_progressive)]
    raise DecodeError("Corrupt", f"more than {_MAX_SCANS} scans; encoders write 20 at most")


READER = Reader(version=decoder_name)
