"""What the kinds of KubeRay and of the Prometheus operator look like, as far as our manifests use them.

Fields, types and choices are those of KubeRay 1.7 (ray.io/v1) and of monitoring.coreos.com/v1. A field that no manifest
uses is not here: one that a manifest begins to use is to be added. Pods, resources, security contexts and object
metadata are those of Kubernetes itself, by the schemas that come with kubernetes-validate.
"""

from __future__ import annotations

import functools
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

Schema = dict[str, Any]

KUBERNETES = "1.34"
_DEFINITIONS = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json"

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_SECONDS = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}


def _kubernetes(name: str) -> Schema:
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.{name}"}


_METADATA = _kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta")
_SELECTOR = _kubernetes("apimachinery.pkg.apis.meta.v1.LabelSelector")
_POD_TEMPLATE = _kubernetes("api.core.v1.PodTemplateSpec")
_RESOURCES = _kubernetes("api.core.v1.ResourceRequirements")
_SECURITY_CONTEXT = _kubernetes("api.core.v1.SecurityContext")


def _fields(*, required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of these fields and no other."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


RAY_CLUSTER = _fields(
    required=("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=_fields(required=("mode",), mode=_one_of("disabled", "token")),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_fields(
        version=_one_of("v1", "v2"),
        upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=_COUNT,
        resources=_RESOURCES,
        securityContext=_SECURITY_CONTEXT,
    ),
    headGroupSpec=_fields(
        required=("rayStartParams", "template"), rayStartParams=_MAP, template=_POD_TEMPLATE
    ),
    workerGroupSpecs=_list_of(
        _fields(
            required=("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=_TEXT,
            priority=_COUNT,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_MAP,
            template=_POD_TEMPLATE,
        )
    ),
)

RAY_JOB = _fields(
    required=("entrypoint",),
    entrypoint=_TEXT,
    jobId=_TEXT,
    metadata=_MAP,
    runtimeEnvYAML={"type": "string"},
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterPodTemplate=_POD_TEMPLATE,
    suspend=_FLAG,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    activeDeadlineSeconds=_SECONDS,
    backoffLimit=_COUNT,
    rayClusterSpec=RAY_CLUSTER,
)

RAY_CRON_JOB = _fields(
    required=("schedule", "jobTemplate"),
    schedule={"type": "string", "pattern": r"^\S+( \S+){4}$"},
    timeZone=_TEXT,
    jobTemplate=RAY_JOB,
)

POD_MONITOR = _fields(
    required=("selector", "podMetricsEndpoints"),
    namespaceSelector=_fields(matchNames=_TEXTS),
    selector=_SELECTOR,
    podMetricsEndpoints=_list_of(
        _fields(
            port=_TEXT,
            interval={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
            relabelings=_list_of(_fields(sourceLabels=_TEXTS, targetLabel=_TEXT)),
        )
    ),
)

# By apiVersion and kind, what is in `spec`.
SPECS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("ray.io/v1", "RayCronJob"): RAY_CRON_JOB,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
}


@functools.cache
def validator(api_version: str, kind: str) -> Draft202012Validator:
    """Of whole documents. Raises KeyError for a kind that is not here."""
    schema = _fields(
        required=("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=_METADATA,
        spec=SPECS[api_version, kind],
    )
    return Draft202012Validator(schema, registry=_registry())


@functools.cache
def _registry() -> Registry:
    definitions = utils.schema_contents(_DEFINITIONS, KUBERNETES)
    return Resource.from_contents(definitions) @ Registry()
