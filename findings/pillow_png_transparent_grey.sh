#!/usr/bin/env bash
# One would guess: the transparent grey of a PNG (tRNS) is transparent at every depth, as it is for 1, 8 and 16 bits.
# So is it (Pillow 13.0.0): at 2 and 4 bits Pillow scales the pixels to 8 bits and the transparent value not, so it
# meets no pixel, or another grey. PNG optimizers write such files; libvips reads them right.
# Why it matters here: what was to be seen through comes out opaque, often a black ground behind a drawing, and
# nothing is said.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 pyvips==3.2.0 \
    pyvips-binary==8.18.7 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import numpy as np
import PIL
import pyvips
from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, level):
    """8 x 8 pixels, all of them of the transparent grey."""
    row = np.packbits(np.unpackbits(np.full((8, 1), level, np.uint8), axis=1)[:, -bits:]).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", level))
        + chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
        + chunk(b"IEND", b"")
    )


print(f"Pillow {PIL.__version__}, libvips {pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}")
found = {}
for bits in (1, 2, 4, 8):
    data = png(bits, 1)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[0, 0, 3]
    vips = pyvips.Image.new_from_buffer(data, "").numpy()[0, 0, -1]
    found[bits] = int(pillow), int(vips)
    print(f"{bits} bits: alpha of the transparent grey {pillow} by Pillow, {vips} by libvips")
assert found == {1: (0, 0), 2: (255, 0), 4: (255, 0), 8: (0, 0)}, "the behaviour has changed"
PYTHON
