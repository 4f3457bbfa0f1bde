"""The CRDs of KubeRay where they are beside the repository: what an API server would really check."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.infra.manifests import REPOSITORY

CRDS = REPOSITORY.parent / "shared/schemas/kuberay"


@functools.cache
def crd_schema(kind: str) -> dict[str, Any]:
    """The OpenAPI schema of a kind of ray.io/v1, as it is written."""
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in document["spec"]["versions"] if one["name"] == "v1"]
    return version["schema"]["openAPIV3Schema"]


@functools.cache
def crd_validator(kind: str) -> Draft202012Validator:
    """Of the `spec` of documents of this kind, with no unknown field allowed."""
    return Draft202012Validator(_strict(crd_schema(kind)["properties"]["spec"]))


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
