#!/usr/bin/env bash
# One would guess: an httpx client made by set_client_factory with a timeout bounds how long huggingface_hub waits for a
# silent server, as the factory is how its documentation has one customize the client.
# What is so (huggingface_hub 2.4.0): repo_info, list_repo_tree and others hand `timeout=None` to the client by name,
# and that goes before the client's own, so they wait for ever. The default client has no limit at all. A hook on
# requests sees the limits and may set them.
# Why it matters here: a run that lists a dataset of the hub behind a gateway that takes connections and never answers
# would stand still without a word. storage/hub_session.py sets the limits in such a hook.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0 2>/dev/null
HF_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import socket
import sys
import threading

from huggingface_hub import HfApi, get_session, set_client_factory

silent = socket.create_server(("127.0.0.1", 0), backlog=16)  # the kernel takes connections; nobody reads them
api = HfApi(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", token=False)
make, hooks = type(get_session()), get_session().event_hooks


def ends(call):
    """How a call ended within five seconds."""
    found = []

    def run():
        try:
            call()
        except Exception as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    return found[0] if found else "still waits"


def limit(request):
    request.extensions["timeout"] = {"connect": 0.2, "read": 0.2, "write": 0.2, "pool": None}


def info():
    api.repo_info("me/set", repo_type="dataset")


set_client_factory(lambda: make(timeout=0.2))
by_client = ends(info)
print(f"client with a timeout of 0.2 s: repo_info {by_client}; a bare GET {ends(lambda: get_session().get(api.endpoint))}")
set_client_factory(lambda: make(event_hooks={**hooks, "request": [*hooks["request"], limit]}))
by_hook = ends(info)
print(f"hook that sets 0.2 s: repo_info {by_hook}")
sys.exit(0 if (by_client, by_hook) == ("still waits", "ReadTimeout") else "the behaviour has changed")
PYTHON
