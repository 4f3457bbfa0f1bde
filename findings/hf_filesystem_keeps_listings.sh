#!/usr/bin/env bash
# One would guess: an fsspec filesystem that was told use_listings_cache=False asks its store for what is there.
# What is so (huggingface_hub 2.4.0, fsspec 2026.9.0): HfFileSystem takes the option and does not heed it. It keeps the
# listing of every folder that it has listed, and exists, info and open answer from it: a file that somebody committed
# afterwards is not there, and one that was replaced has its old size, for as long as the process lives. A filesystem
# that is made in another thread begins with the listings of the main thread's.
# Why it matters here: a run lists data/, and other actors go on committing to it. So files of the hub are asked for by
# their names (storage/hub.py), and before a folder is listed the driver's listings are thrown away
# (storage/listing.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0 fsspec==2026.9.0 2>/dev/null
HF_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import HfFileSystem

files = {"data/0.txt": 5}  # name: size


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        told = {"id": "me/set", "sha": "0" * 40}
        if "/tree/" in self.path:
            told = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in files.items()]
        data = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {"endpoint": f"http://127.0.0.1:{server.server_port}", "token": False, "use_listings_cache": False}
filesystem = HfFileSystem(**options)
filesystem.ls("datasets/me/set/data")
files |= {"data/0.txt": 7, "data/1.txt": 3}  # a commit of somebody else


seen = []


def tell(where):
    hub = HfFileSystem(**options)
    seen.append((hub.exists("datasets/me/set/data/1.txt"), hub.info("datasets/me/set/data/0.txt")["size"]))
    print(f"{where}: 1.txt is there: {seen[-1][0]}, bytes of 0.txt: {seen[-1][1]}")


print("on the hub: 1.txt is there: True, bytes of 0.txt: 7")
tell("in the same thread")
thread = threading.Thread(target=tell, args=["in a new thread"])
thread.start()
thread.join()
sys.exit(0 if seen == [(False, 5), (False, 5)] else "the behaviour has changed")
PYTHON
