#!/usr/bin/env bash
# What one would guess: the labels that webdataset's TarWriter takes, its own decoder reads back.
# What is so (webdataset 1.0.2): `cls` may be anything that str() makes text of. A gap (None) is written as the text
# "None" and a float as pandas has it, 3.0, as the text "3.0", without a word; decoding then raises DecodingError, which
# ends the iteration at the first such sample.
# Why it matters here: shards like these exist and were never read by who wrote them. A reader of `.cls` has to know
# that "None" and "nan" are gaps and "3.0" is 3, and must not drop the samples or take their labels for damage.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import tarfile

import webdataset

print("webdataset", webdataset.__version__)
is_as_told = True
for label, text in ((3, b"3"), (3.0, b"3.0"), (None, b"None"), (float("nan"), b"nan")):
    path = f"{sys.argv[1]}/a.tar"
    with webdataset.TarWriter(path) as tar:
        tar.write({"__key__": "a", "txt": "x", "cls": label})
    with tarfile.open(path) as tar:
        member = tar.extractfile("a.cls")
        written = member.read() if member else b""
    try:
        read = repr(next(iter(webdataset.WebDataset(path, shardshuffle=False).decode()))["cls"])
    except Exception as error:
        read = f"{type(error).__name__} ({error.__cause__})"
    print(f"label {label!r}: written as {written!r}, read as {read}")
    is_as_told &= written == text and (read == "3") == (label == 3 and isinstance(label, int))
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
