#!/usr/bin/env bash
# One would guess: fsspec's own options, as use_listings_cache, are taken by every filesystem of fsspec, and a file
# whose name holds a question mark opens at sftp://host/a?b.jpg as it does at file://.
# What is so (fsspec 2026.9.0, paramiko 5.1.0): SFTPFileSystem hands all its options to paramiko's connect(), which
# knows neither these nor `url_query`, the name under which fsspec's own reader of URLs gives on what stands behind the
# question mark. Both end in a TypeError before a host is asked.
# Why it matters here: a corpus on an SFTP server could not be read at all with the options that other stores get, so
# the options of each protocol are chosen (storage/urls.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q fsspec==2026.9.0 paramiko==5.1.0 2>/dev/null
cd "$folder"
printf x > 'a?b.jpg'
"$folder/venv/bin/python" - <<'PYTHON'
import socket
import sys

import fsspec

print("file:", fsspec.open("file://a?b.jpg").open().read(), flush=True)
seen = []
with socket.create_server(("127.0.0.1", 0)) as server:  # nobody speaks SSH there, and nobody is asked
    where = f"sftp://me@127.0.0.1:{server.getsockname()[1]}"
    for url, options in ((f"{where}/a.jpg", {"use_listings_cache": False}), (f"{where}/a?b.jpg", {})):
        try:
            fsspec.core.url_to_fs(url, password="x", **options)
            seen.append("no error")
        except TypeError as error:
            seen.append(str(error))
    server.settimeout(0.2)
    try:
        server.accept()
        seen.append("somebody called")
    except TimeoutError:
        pass
print(*seen, sep="\n")
unknown = "SSHClient.connect() got an unexpected keyword argument "
is_as_told = seen == [unknown + "'use_listings_cache'", unknown + "'url_query'"]
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
