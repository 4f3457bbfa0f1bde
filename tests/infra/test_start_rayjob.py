"""The nightly pod's script against a server that speaks the part of Kubernetes' API that it uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.manifests import REPOSITORY

SCRIPT = REPOSITORY / "jobs/kuberay/nightly_tokenize/start_rayjob.py"
PATH = "/apis/ray.io/v1/namespaces/tatok/rayjobs"
TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {
        "name": "nightly",
        "uid": "1",
        "labels": {"app.kubernetes.io/part-of": "tatok-pipe"},
        "annotations": {"tatok.dev/queue-name": "tatok", "kueue.x-k8s.io/elastic-job": "true"},
    },
    "spec": {"suspend": True, "entrypoint": "true", "shutdownAfterJobFinishes": True},
    "status": {"jobDeploymentStatus": "Suspended"},
}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {
    "jobDeploymentStatus": "Failed",
    "jobStatus": "FAILED",
    "reason": "AppFailed",
    "message": "exit code 1",
}


class Api:
    """RayJobs by name, and the statuses that a new one goes through, one for every look at it."""

    def __init__(self, *statuses: dict[str, str] | None) -> None:
        self.jobs: dict[str, Any] = {"nightly": TEMPLATE}
        self.statuses = list(statuses)

    def get(self, name: str) -> tuple[int, Any]:
        if name in self.jobs and name != "nightly" and self.statuses:
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status is None:
                del self.jobs[name]
            else:
                self.jobs[name]["status"] = status
        return (200, self.jobs[name]) if name in self.jobs else (404, {"message": f"{name} not found"})

    def create(self, job: Any) -> tuple[int, Any]:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f"{name} already exists"}
        self.jobs[name] = job
        return 201, job


@contextmanager
def serve(api: Api, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which a client finds this API."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*api.get(self.path.removeprefix(PATH).strip("/")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*api.create(json.loads(body)))

        def _answer(self, code: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = folder / "kubeconfig"
    cluster = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
    context = {"cluster": "here", "user": "me", "namespace": "tatok"}
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": cluster}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "here", "context": context}],
            }
        )
    )
    try:
        yield {**os.environ, "KUBECONFIG": str(config), "POLL_S": "0.05"}
    finally:
        server.shutdown()
        server.server_close()


def start(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_copy_runs_and_is_waited_for(tmp_path: Path) -> None:
    api = Api({}, RUNNING, RUNNING, SUCCEEDED)
    with serve(api, tmp_path) as env:
        done = start("nightly", "nightly-29384800", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "RayJob nightly-29384800 created from nightly",
        "RayJob nightly-29384800: New, no job yet",
        "RayJob nightly-29384800: Running, RUNNING",
        "RayJob nightly-29384800: Complete, SUCCEEDED",
    ]
    made = api.jobs["nightly-29384800"]
    assert made["spec"] == {**TEMPLATE["spec"], "suspend": False}
    assert made["metadata"] == {
        "name": "nightly-29384800",
        "labels": {
            "app.kubernetes.io/part-of": "tatok-pipe",
            "kueue.x-k8s.io/queue-name": "tatok",
            "tatok.dev/template": "nightly",
        },
        "annotations": {"kueue.x-k8s.io/elastic-job": "true"},
    }
    assert api.jobs["nightly"] == TEMPLATE


@pytest.mark.parametrize(
    ("make_api", "code", "told"),
    [
        (lambda: Api(RUNNING, FAILED), 1, "failed: AppFailed exit code 1"),
        (lambda: Api(RUNNING, None), 1, "was deleted"),
    ],
)
def test_what_goes_wrong_is_told(make_api: Callable[[], Api], code: int, told: str, tmp_path: Path) -> None:
    with serve(make_api(), tmp_path) as env:
        done = start("nightly", "tonight", env=env)
    assert done.returncode == code
    assert done.stderr.strip().endswith(told) and "Traceback" not in done.stderr


def test_a_second_pod_waits_for_the_first_ones_job(tmp_path: Path) -> None:
    api = Api(RUNNING, SUCCEEDED)
    api.jobs["tonight"] = {"metadata": {"name": "tonight"}}
    with serve(api, tmp_path) as env:
        done = start("nightly", "tonight", env=env)
    assert done.returncode == 0
    assert done.stdout.startswith("RayJob tonight is there already")


def test_without_a_template_nothing_is_made(tmp_path: Path) -> None:
    api = Api(SUCCEEDED)
    del api.jobs["nightly"]
    with serve(api, tmp_path) as env:
        done = start("nightly", "tonight", env=env)
    assert done.returncode == 2
    assert "cannot be created: 404" in done.stderr and "Traceback" not in done.stderr
    assert not api.jobs
    # And without an API that answers.
    done = start("nightly", "tonight", env=env)
    assert done.returncode == 2
    assert "cannot be created" in done.stderr and "Traceback" not in done.stderr


def test_told_to_stop_it_leaves_the_job(tmp_path: Path) -> None:
    api = Api(RUNNING)
    with serve(api, tmp_path) as env:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "nightly", "tonight"], env=env, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 30
        while "status" not in api.jobs.get("tonight", {}):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert errors == "told to stop; the RayJob goes on\n"
    assert "tonight" in api.jobs
