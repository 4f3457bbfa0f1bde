#!/usr/bin/env bash
# One would guess: the decoders of a format whose specification fits on one page agree on every valid file.
# What is so (Pillow 13.0.0, imagecodecs 2026.3.6): QOI keeps an array of the pixels that were seen, and Pillow does not
# put those of a run into it. Other pixels are there before a run repeats them; but a run that begins the file repeats
# the opaque black that decoding starts from, and black that later comes by its place in the array is transparent black
# to Pillow. imagecodecs, which has the reference code, shows black. The reference's encoder writes no such file, others
# may.
# Why it matters here: over white, the difference is a white pixel for a black one. images/formats/qoi.py writes the
# first pixel of such a run out before Pillow sees the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q Pillow==13.0.0 imagecodecs==2026.3.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys

import imagecodecs
from PIL import Image

# A run of one, then white with all its channels, then the pixel at 53, (255 * 11) % 64: opaque black.
operations = b"\xc0" + b"\xff\xff\xff\xff\xff" + b"\x35"
data = b"qoif" + struct.pack(">IIBB", 3, 1, 4, 0) + operations + bytes(7) + b"\1"
pillow = [tuple(pixel) for pixel in Image.open(io.BytesIO(data)).get_flattened_data()]
other = [tuple(pixel) for pixel in imagecodecs.qoi_decode(data)[0].tolist()]
print("Pillow:     ", *pillow)
print("imagecodecs:", *other)
black, white = (0, 0, 0, 255), (255, 255, 255, 255)
same = pillow == [black, white, (0, 0, 0, 0)] and other == [black, white, black]
sys.exit(0 if same else "the behaviour has changed")
PYTHON
