"""Create a RayJob from a suspended one and wait for its end: what the CronJob's pod does.

    python start_rayjob.py TEMPLATE NAME

TEMPLATE is a RayJob of this namespace with `suspend: true`; the new one, NAME, is the same without. A pod that is
started anew finds the RayJob of that name and waits for that. Exit code 0 where the job succeeded, 1 where it failed
(Kubernetes' log of this pod says how), 2 where it could not be created, 4 where this was told to stop: the RayJob goes
on then.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

KIND: dict[str, Any] = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POLL_S = float(os.environ.get("POLL_S", "20"))
PATIENCE_S = 600.0  # of an API that does not answer
OVER = ("Complete", "Failed")
QUEUE, QUEUE_OF_COPIES = "kueue.x-k8s.io/queue-name", "tatok.dev/queue-name"
# Of the template's annotations those that are its own.
NOT_COPIED = (QUEUE_OF_COPIES, "kubectl.kubernetes.io/last-applied-configuration")


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: start_rayjob.py TEMPLATE NAME", file=sys.stderr)
        return 2
    template, name = argv
    signal.signal(signal.SIGTERM, _stop)
    try:
        config.load_incluster_config()
        namespace = NAMESPACE_FILE.read_text()
    except config.ConfigException:  # by hand, from outside of the cluster
        config.load_kube_config()
        namespace = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
    api = client.CustomObjectsApi()
    try:
        create(api, namespace, template, name)
    except (ApiException, HTTPError) as error:
        told = f"{error.status} {error.reason}: {error.body}" if isinstance(error, ApiException) else error
        print(f"RayJob {name} cannot be created: {told}", file=sys.stderr)
        return 2
    return wait(api, namespace, name)


def create(api: client.CustomObjectsApi, namespace: str, template: str, name: str) -> None:
    """Raises ApiException."""
    job: Any = api.get_namespaced_custom_object(**KIND, namespace=namespace, name=template)
    annotations = job["metadata"].get("annotations", {})
    labels = job["metadata"].get("labels", {}) | {"tatok.dev/template": template}
    if QUEUE_OF_COPIES in annotations:
        labels[QUEUE] = annotations[QUEUE_OF_COPIES]
    body = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {key: value for key, value in annotations.items() if key not in NOT_COPIED},
        },
        "spec": job["spec"] | {"suspend": False},
    }
    try:
        api.create_namespaced_custom_object(**KIND, namespace=namespace, body=body)
    except ApiException as error:
        if error.status != 409:
            raise
        print(f"RayJob {name} is there already", flush=True)
        return
    print(f"RayJob {name} created from {template}", flush=True)


def wait(api: client.CustomObjectsApi, namespace: str, name: str) -> int:
    shown, heard_s = "", time.monotonic()
    while True:
        try:
            job: Any = api.get_namespaced_custom_object(**KIND, namespace=namespace, name=name)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status == 404:
                print(f"RayJob {name} was deleted", file=sys.stderr)
                return 1
            if time.monotonic() - heard_s > PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        heard_s = time.monotonic()
        status = job.get("status", {})
        told = f"{status.get('jobDeploymentStatus', 'New')}, {status.get('jobStatus') or 'no job yet'}"
        if told != shown:
            shown = told
            print(f"RayJob {name}: {told}", flush=True)
        if status.get("jobDeploymentStatus") in OVER:
            if status.get("jobStatus") == "SUCCEEDED":
                return 0
            reason = " ".join(filter(None, (status.get("reason"), status.get("message"))))
            print(f"RayJob {name} failed: {reason or 'no reason given'}", file=sys.stderr)
            return 1
        time.sleep(POLL_S)


def _stop(signum: int, frame: object) -> NoReturn:
    print("told to stop; the RayJob goes on", file=sys.stderr)
    raise SystemExit(4)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
