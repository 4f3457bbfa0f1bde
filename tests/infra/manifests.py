"""Kubernetes manifests as kustomize renders them, and what is wrong with them.

Every object is checked against the schema of its kind with no unknown field allowed: kinds of Kubernetes by the schemas
of kubernetes-validate, kinds of KubeRay by its CRDs, the PodMonitor by the part of its schema that is used here.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = REPOSITORY.parent / "shared/schemas/kuberay"
KUBERNETES = "1.34"

_STRING_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_SELECTOR = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "matchLabels": _STRING_MAP,
        "matchExpressions": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["key", "operator"],
                "properties": {
                    "key": {"type": "string"},
                    "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
# Of monitoring.coreos.com/v1, the Prometheus operator's API.
_POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "namespaceSelector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchNames": {"type": "array", "items": {"type": "string"}}},
        },
        "selector": _SELECTOR,
        "podMetricsEndpoints": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "interval": {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                    "relabelings": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                "targetLabel": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    },
}


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
    """What an API server with strict validation would refuse."""
    kind, group = document["kind"], document["apiVersion"].partition("/")[0]
    if group == "ray.io":
        schema = _crd(kind)
    elif kind == "PodMonitor":
        schema = {
            "type": "object",
            "additionalProperties": False,
            "properties": {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": _POD_MONITOR},
        }
    else:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{'.'.join(map(str, error.path))}: {error.message[:300]}"


@functools.cache
def _crd(kind: str) -> dict[str, Any]:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    (version,) = [one for one in _load(path)["spec"]["versions"] if one["name"] == "v1"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _load(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(), Loader=loader)


def _strict(schema: Any) -> Any:
    """An OpenAPI schema as JSON schema in which unknown fields are errors, as a CRD prunes or refuses them."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {
        key: {name: _strict(each) for name, each in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in ("description", "default", "format") and not key.startswith("x-kubernetes")
    }
    if (
        "properties" in strict
        and "additionalProperties" not in strict
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        strict["additionalProperties"] = False
    return strict
