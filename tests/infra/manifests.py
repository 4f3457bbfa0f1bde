"""Kubernetes manifests as kustomize renders them, and what is wrong with them.

Every object is checked against the schema of its kind with no unknown field allowed: kinds of Kubernetes by the schemas
of kubernetes-validate, others by those in `schemas.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.infra.schemas import KUBERNETES, SPECS, validator

REPOSITORY = Path(__file__).resolve().parents[2]


def kubectl() -> str | None:
    return shutil.which("kubectl")


def render(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    program = kubectl()
    assert program is not None
    done = subprocess.run(
        [program, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def problems(document: dict[str, Any]) -> Iterator[str]:
    """What an API server with strict validation would refuse, each with its place."""
    api_version, kind = document["apiVersion"], document["kind"]
    if (api_version, kind) in SPECS:
        yield from _unfit_values(document)
        for error in validator(api_version, kind).iter_errors(document):
            yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"
        return
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"apiVersion: {error.message}"


def _unfit_values(node: Any, path: str = "") -> Iterator[str]:
    """What Kubernetes takes in kinds of its own and refuses in other kinds, also for the pods in them: null for a field
    that is not given, and quantities as fractions (`cpu: 0.5`; `500m` is text)."""
    if node is None or isinstance(node, float):
        yield f"{path}: {node}"
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from _unfit_values(child, f"{path}.{name}" if path else str(name))
