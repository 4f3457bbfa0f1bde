#!/usr/bin/env bash
# One would guess: create_commit(…, parent_commit=X) fails where the branch is not at X any more, so that of two writers
# that begin at X one alone is told that it has written.
# What is so (huggingface_hub 2.4.0): before it commits, the client asks which files are there with the same content,
# and leaves these out. Where nothing is left it asks for no commit, and nobody looks at the parent: the second writer
# of equal bytes gets a CommitInfo, as the first did. A line of the log is all that tells ("No files have been modified
# …").
# Why it matters here: token shards of two jobs are equal byte by byte, and a shard is one job's. So a file is looked
# for on the very head that the commit names, after the client has asked (storage/hub_commits.py), and the title of the
# commit that made the file says whose it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0 2>/dev/null
HF_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import CommitOperationAdd, HfApi

files, commits = {}, ["0" * 40]


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, told = 200, {"id": "me/set", "sha": commits[-1]}
        if "/preupload/" in self.path:
            told = {"files": [self.mode(each["path"]) for each in json.loads(body)["files"]]}
        elif "/commit/" in self.path:
            header, *lines = [json.loads(line)["value"] for line in body.splitlines()]
            if header["parentCommit"] != commits[-1]:
                status, told = 412, {"error": "A commit has happened since. Please refresh and try again."}
            else:
                files.update({each["path"]: base64.b64decode(each["content"]) for each in lines})
                commits.append(f"{len(commits):040d}")
                url = f"http://{self.headers['Host']}/datasets/me/set/commit/{commits[-1]}"
                told = {"commitOid": commits[-1], "commitUrl": url}
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def mode(self, path):
        told = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
        if path in files:
            told["oid"] = hashlib.sha1(b"blob %d\0" % len(files[path]) + files[path]).hexdigest()
        return told

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_nobody")
parent = api.repo_info("me/set", repo_type="dataset").sha
seen = []
for writer, data in (("first", b"same"), ("second", b"same"), ("third", b"other")):
    operation = CommitOperationAdd("x.txt", data)
    try:
        api.create_commit(
            "me/set", [operation], commit_message=writer, repo_type="dataset", parent_commit=parent
        )
        seen.append(f"{writer}: told that it has written; commits since the parent: {len(commits) - 1}")
    except OSError as error:
        seen.append(f"{writer}: {error.response.status_code}")
print(*seen, sep="\n")
is_as_told = seen == [
    "first: told that it has written; commits since the parent: 1",
    "second: told that it has written; commits since the parent: 1",
    "third: 412",
]
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
