#!/usr/bin/env bash
# One would guess: a TIFF that Pillow opens without a word shows what it holds, however its samples are stored.
# So is it (Pillow 13.0.0): where each of 3 x 16 bits has a plane of its own (PlanarConfiguration=2, tifffile's
# planarconfig="separate", many scanners and GIS tools) and nothing is compressed, Pillow reads every plane as 8 bits.
# The picture is stripes of high and low bytes, and no error or warning is given; compressed, the same file is right.
# Why it matters here: such a picture would become tokens like any other, and a model would learn the stripes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import numpy as np
import PIL
import tifffile
from PIL import Image

warnings.simplefilter("error")
ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
planes = np.stack([ramp, ramp.T, ramp[::-1]])
expected = np.moveaxis(planes, 0, -1) / 257
errors = {}
for compression in (None, "zlib"):
    path = f"{sys.argv[1]}/{compression}.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression=compression)
    assert (tifffile.imread(path) == planes).all()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    errors[compression] = np.abs(pixels - expected).mean()
print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}")
for compression, error in errors.items():
    print(f"compression {compression}: Pillow is {error:.1f} of 255 away from the picture, and says nothing")
assert errors["zlib"] < 1 and errors[None] > 20, "the behaviour has changed"
PYTHON
