#!/usr/bin/env bash
# One would guess that Pillow, which raises "image file is truncated" for a JPEG that stops in the middle, also refuses
# one that stops in the middle and was closed with the end marker FF D9, as a writer or a repair tool closes it.
# So it is (Pillow 13.0.0): it loads without an error or a Python warning, also after verify(), and what is missing of
# the picture is grey. libjpeg does say "Corrupt JPEG data: premature end of data segment", but as a warning, which
# Pillow drops; simplejpeg 1.9.0 raises it.
# Why it matters: a corpus filtered by "does Pillow load it" trains on half-grey pictures, and nobody is told.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 simplejpeg==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PY'
import io

import numpy as np
import PIL
import simplejpeg
from PIL import Image

print("Pillow", PIL.__version__, "simplejpeg", simplejpeg.__version__)
ramp = np.linspace(0, 255, 256 * 256).reshape(256, 256).astype(np.uint8)
picture = Image.fromarray(np.dstack([ramp, ramp.T, ramp[::-1]]))
out = io.BytesIO()
picture.save(out, "JPEG", quality=95)
whole = out.getvalue()
scan = whole.index(b"\xff\xda")
half = whole[: scan + (len(whole) - scan) // 2]


def load(data):
    try:
        Image.open(io.BytesIO(data)).verify()
        image = Image.open(io.BytesIO(data))
        image.load()
        return np.asarray(image)
    except OSError as error:
        return f"OSError: {error}"


def decode(data):
    try:
        simplejpeg.decode_jpeg(data, strict=True)
        return "no word"
    except ValueError as error:
        return f"ValueError: {error}"


open_end, closed = load(half), load(half + b"\xff\xd9")
assert isinstance(closed, np.ndarray), closed
num_colours = [len(np.unique(pixels[-64:].reshape(-1, 3), axis=0)) for pixels in (load(whole), closed)]
print("Pillow, half a file:              ", open_end)
print("Pillow, half a file and FF D9:     loaded; colours in the last 64 rows, before and now:", *num_colours)
print("simplejpeg, half a file and FF D9:", decode(half + b"\xff\xd9"))
print("simplejpeg, the whole file:       ", decode(whole))
assert isinstance(open_end, str) and "truncated" in open_end
assert num_colours[0] > 100 and num_colours[1] == 1
assert "premature end of data segment" in decode(half + b"\xff\xd9") and decode(whole) == "no word"
PY
