#!/usr/bin/env bash
# One would guess: fsspec's cat_file(url, start, end) gives the bytes [start, end) of a file on a web server, or an error.
# What is so (fsspec 2026.9.0): where the server ignores Range (python -m http.server does, with many small ones) it
# downloads the whole file and returns all of it as the part, without a word; info() says nothing of it either.
# Why it matters here: a shard of 128 MB read as ranges of 16 MiB, eight at a time and each tried again, was downloaded 40
# times and took 1.9 GB of memory before the lengths gave it away. So tatok_pipe looks at the status of the answer before
# it reads its body, and reads such a file as one stream.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fsspec==2026.9.0 aiohttp==3.14.5 2>/dev/null
mkdir "$folder/served"
head -c 1000000 /dev/zero > "$folder/served/0.tar"
"$folder/venv/bin/python" -u -m http.server 0 -b 127.0.0.1 -d "$folder/served" > "$folder/port" 2> /dev/null &
server=$!
until grep -q port "$folder/port"; do sleep 0.1; done
"$folder/venv/bin/python" - "$(grep -o 'port [0-9]*' "$folder/port" | cut -d' ' -f2)" <<'PYTHON'
import sys

import fsspec

url = f"http://127.0.0.1:{sys.argv[1]}/0.tar"
web = fsspec.filesystem("http")
info = web.info(url)
part = web.cat_file(url, start=100, end=200)
print("fsspec", fsspec.__version__)
print("info() on ranges:", info.get("partial", "nothing"))
print("asked for 100 bytes, got", len(part))
assert len(part) == info["size"] == 1_000_000 and "partial" not in info, "not so any more"
PYTHON
