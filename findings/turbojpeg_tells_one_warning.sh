#!/usr/bin/env bash
# One would guess that a decoder which is asked to be strict about a damaged JPEG names the damage, so that harmless
# remarks can be told from lost pixels by their words.
# So it is (simplejpeg 1.9.0 with libjpeg-turbo 3.1.2): of all that libjpeg warns of, only the first text is kept, and
# the first is about the header. A file with two stray bytes between two segments, as some cameras write, and a scan of
# which half is missing, is reported with the same words as the intact file with the two stray bytes. With strict=False
# decode_jpeg raises all the same, because it reads the header strictly.
# Why it matters: who lets "extraneous bytes before marker 0xdb" pass lets half pictures pass; who refuses it loses
# whole ones. The header has to be cleaned first; then the first warning is about the scan.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check simplejpeg==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import simplejpeg

print("simplejpeg", simplejpeg.__version__)
picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
whole = simplejpeg.encode_jpeg(picture, quality=90)
half = whole[: len(whole) // 2] + b"\xff\xd9"


def with_stray_bytes(data):
    at = data.index(b"\xff\xdb")
    return data[:at] + b"\0\0" + data[at:]


def told(data, strict=True):
    try:
        simplejpeg.decode_jpeg(data, strict=strict)
        return "nothing"
    except ValueError as error:
        return str(error)


print("half:                             ", told(half))
print("whole, stray bytes:               ", told(with_stray_bytes(whole)))
print("half, stray bytes:                ", told(with_stray_bytes(half)))
print("whole, stray bytes, strict=False: ", told(with_stray_bytes(whole), strict=False))
assert "premature end of data segment" in told(half) and told(half, strict=False) == "nothing"
assert "2 extraneous bytes before marker 0xdb" in told(with_stray_bytes(whole))
assert told(with_stray_bytes(half)) == told(with_stray_bytes(whole)) == told(with_stray_bytes(whole), strict=False)
PY
