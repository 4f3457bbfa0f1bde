#!/usr/bin/env bash
# One would guess: unstrip_protocol(_strip_protocol(url)), fsspec's way to the full name of a file, gives a URL that opens
# the same file; and files of two servers have two names.
# What is so (fsspec 2026.9.0): for s3, gs, http and others it does; the drivers of webhdfs, sftp, ftp and smb take the
# host out of the path, into options of the filesystem, and unstrip_protocol does not put it back: webhdfs:///a/x.tar for
# the file of any server, which opens nothing ("missing 1 required positional argument: 'host'").
# Why it matters here: a dataset remembers its image shards by such names, and what it names is opened without asking only
# in its own store, which two servers of equal paths would seem to be. storage/urls.py puts the host back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fsspec==2026.9.0 requests paramiko 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import fsspec
from fsspec.core import url_to_fs

names = []
for host in ("h1", "h2"):
    filesystem, path = url_to_fs(f"webhdfs://{host}:9870/a/x.tar")  # does not connect before it must
    names.append(filesystem.unstrip_protocol(path))
print("webhdfs://h1:9870/a/x.tar and webhdfs://h2:9870/a/x.tar:", *names)
paths = {}
for protocol in ("sftp", "ftp"):
    driver = fsspec.get_filesystem_class(protocol)
    paths[protocol] = driver._strip_protocol(f"{protocol}://h1:99/a/x.tar")
print("without the protocol:", paths)
try:
    url_to_fs(names[0])
    error = "none"
except TypeError as found:
    error = str(found)
print("opening that name:", error)
same = names == ["webhdfs:///a/x.tar"] * 2 and set(paths.values()) == {"/a/x.tar"} and "'host'" in error
sys.exit(0 if same else "the behaviour has changed")
PYTHON
