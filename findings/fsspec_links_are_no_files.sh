#!/usr/bin/env bash
# One would guess: fsspec lists a folder of symbolic links to shards as the shards, as ls -L, find -L and glob do.
# What is so (fsspec 2026.9.0): glob(detail=True), ls(detail=True) and find(detail=True) give a link the type "other", while
# info() of the same path says "file"; find() takes a link to a folder for a file and does not go into it.
# Why it matters here: shards and token datasets are linked together from several disks. Whoever keeps the entries of the
# type "file" finds a folder empty that is full of shards. So tatok_pipe lists local folders itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fsspec==2026.9.0 2>/dev/null
mkdir -p "$folder/disk/more" "$folder/train"
head -c 10240 /dev/zero | tee "$folder/disk/0.tar" > "$folder/disk/more/1.tar"
ln -s "$folder/disk/0.tar" "$folder/disk/more" "$folder/train/"
"$folder/venv/bin/python" - "$folder/train" <<'PYTHON'
import glob
import sys

import fsspec

train = sys.argv[1]
disk = fsspec.filesystem("file")
found = disk.glob(f"{train}/*.tar", detail=True)
listed = {name.removeprefix(train): entry["type"] for name, entry in found.items()}
asked = disk.info(f"{train}/0.tar")["type"]
below = [name.removeprefix(train) for name in disk.find(train)]
print("fsspec", fsspec.__version__)
print("glob.glob: ", [name.removeprefix(train) for name in glob.glob(f"{train}/**/*.tar", recursive=True)])
print("fsspec.glob:", listed, " info:", asked)
print("fsspec.find:", below)
assert listed == {"/0.tar": "other"} and asked == "file" and below == ["/0.tar", "/more"], "not so any more"
PYTHON
