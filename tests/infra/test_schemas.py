"""The schemas that manifests are checked with: what they refuse, and that KubeRay accepts what they accept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.infra.crds import CRDS, crd_schema, crd_validator
from tests.infra.manifests import REPOSITORY, problems
from tests.infra.schemas import SPECS

KINDS = sorted(kind for api_version, kind in SPECS if api_version == "ray.io/v1")
needs_crds = pytest.mark.skipif(
    not CRDS.exists(), reason="compares with the CRDs of KubeRay, which are not beside the repository"
)

Document = dict[str, Any]
Path = tuple[str | int, ...]


def _load(name: str) -> Document:
    return yaml.safe_load((REPOSITORY / name).read_text())


def make_documents() -> dict[str, Document]:
    """A whole document of each kind, of the files that kustomize makes them from."""
    cluster = _load("infra/kuberay/cluster/raycluster.yaml")
    job = _load("jobs/kuberay/base/copy/rayjob.yaml")
    job["spec"] |= {"rayClusterSpec": cluster["spec"], "jobId": "job", "suspend": True}
    cron_job = _load("jobs/kuberay/nightly_raycronjob/copy/raycronjob.yaml")
    cron_job["spec"]["jobTemplate"] = job["spec"]
    return {each["kind"]: copy.deepcopy(each) for each in (cluster, job, cron_job)}


def _node(document: Document, path: Path) -> Any:
    node: Any = document
    for name in path:
        node = node[name]
    return node


def _parse(path: str) -> Path:
    return tuple(int(name) if name.isdigit() else name for name in path.split("."))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_as_they_should_be(kind: str) -> None:
    assert list(problems(make_documents()[kind])) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", "apiVersion", "ray.io/v2"),
        ("RayCluster", "metadata.labels", ["tatok"]),
        ("RayCluster", "spec.rayVersion", 2.6),
        ("RayCluster", "spec.authOptions.mode", "password"),
        ("RayCluster", "spec.enableInTreeAutoscaling", "yes"),
        ("RayCluster", "spec.autoscalerOptions.version", 2),
        ("RayCluster", "spec.autoscalerOptions.upscalingMode", "Fast"),
        ("RayCluster", "spec.autoscalerOptions.idleTimeoutSeconds", "120s"),
        ("RayCluster", "spec.autoscalerOptions.resources.limits", "1Gi"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.resources.requests.cpu", 0.5),
        ("RayCluster", "spec.autoscalerOptions.securityContext.runAsNonRoot", "true"),
        ("RayCluster", "spec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        ("RayCluster", "spec.headGroupSpec.template", None),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers", {"name": "ray-head"}),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.ports.0.containerPort", "http"),
        ("RayCluster", "spec.headGroupSpec.template.spec.terminationGracePeriodSeconds", "2m"),
        ("RayCluster", "spec.workerGroupSpecs", {}),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplicas", "64"),
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", -1),
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", 2**31),
        ("RayCluster", "spec.workerGroupSpecs.2.priority", 0.5),
        ("RayJob", "spec.entrypoint", ["python"]),
        ("RayJob", "spec.entrypoint", ""),
        ("RayJob", "spec.submissionMode", "k8sJobMode"),
        ("RayJob", "spec.runtimeEnvYAML", {"env_vars": {}}),
        ("RayJob", "spec.metadata", {"project": 1}),
        ("RayJob", "spec.shutdownAfterJobFinishes", 1),
        ("RayJob", "spec.ttlSecondsAfterFinished", "1d"),
        ("RayJob", "spec.backoffLimit", 1.5),
        ("RayJob", "spec.activeDeadlineSeconds", 0),
        ("RayJob", "spec.submitterPodTemplate.spec.restartPolicy", True),
        ("RayJob", "spec.rayClusterSpec", []),
        ("RayCronJob", "spec.schedule", "nightly"),
        ("RayCronJob", "spec.timeZone", ""),
        ("RayCronJob", "spec.jobTemplate.rayClusterSpec.headGroupSpec.template.spec.volumes.0.name", 1),
    ],
)
def test_a_wrong_value_is_refused(kind: str, path: str, value: Any) -> None:
    document = make_documents()[kind]
    *parents, last = _parse(path)
    _node(document, tuple(parents))[last] = value
    told = list(problems(document))
    assert any(problem.startswith(path) for problem in told), told


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", "metadata"),
        ("RayCluster", "spec.headGroupSpec"),
        ("RayCluster", "spec.workerGroupSpecs.1.groupName"),
        ("RayCluster", "spec.workerGroupSpecs.1.maxReplicas"),
        ("RayCluster", "spec.workerGroupSpecs.1.template"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.name"),
        ("RayJob", "spec.entrypoint"),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.template"),
        ("RayCronJob", "spec.schedule"),
        ("RayCronJob", "spec.jobTemplate.entrypoint"),
    ],
)
def test_a_missing_field_is_named(kind: str, path: str) -> None:
    document = make_documents()[kind]
    *parents, last = _parse(path)
    del _node(document, tuple(parents))[last]
    assert any(f"'{last}' is a required property" in problem for problem in problems(document))


def _differences(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> Iterator[str]:
    """What `ours` promises and `theirs`, of a CRD, does not."""
    if "$ref" in ours:  # Kubernetes's own
        if theirs.get("type") != "object" or "properties" not in theirs:
            yield f"{path}: {ours['$ref']}, there {theirs.get('type')}"
        return
    if ours["type"] != theirs.get("type"):
        yield f"{path}: {ours['type']}, there {theirs.get('type')}"
        return
    if "enum" in theirs and not set(ours.get("enum", [None])) <= set(theirs["enum"]):
        yield f"{path}: {ours.get('enum')}, there {theirs['enum']}"
    if missing := set(theirs.get("required", ())) - set(ours.get("required", ())):
        yield f"{path}: {missing} are required there"
    for name, field in ours.get("properties", {}).items():
        if name in theirs.get("properties", {}):
            yield from _differences(field, theirs["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: unknown there"
    if "items" in ours:
        yield from _differences(ours["items"], theirs["items"], f"{path}[]")
    if isinstance(values := ours.get("additionalProperties"), dict):
        yield from _differences(values, theirs["additionalProperties"], f"{path}{{}}")


@needs_crds
@pytest.mark.parametrize("kind", KINDS)
def test_kuberay_has_every_field_with_this_type(kind: str) -> None:
    theirs = crd_schema(kind)["properties"]["spec"]
    assert list(_differences(SPECS["ray.io/v1", kind], theirs, "spec")) == []
    planted = copy.deepcopy(SPECS["ray.io/v1", kind])
    planted["properties"]["planted"] = {"type": "string"}
    assert list(_differences(planted, theirs, "spec")) == ["spec.planted: unknown there"]


def _paths(node: Any, path: Path = ()) -> Iterator[Path]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from _paths(child, (*path, name))


def _with_small_parts(node: Any) -> Any:
    """The document with the smallest pods, so that what is around them can be broken in every way in no time."""
    if isinstance(node, list):
        return [_with_small_parts(each) for each in node[:1]]
    if not isinstance(node, dict):
        return node
    small = {"spec": {"containers": [{"name": "ray"}]}}
    return {
        name: small if name in ("template", "submitterPodTemplate") else _with_small_parts(child)
        for name, child in node.items()
    }


def _broken(document: Document) -> Iterator[tuple[str, Document]]:
    for path in list(_paths(document["spec"])):
        *parents, last = ("spec", *path)
        for value in (None, "", "x", -1, 0.5, True, [], ["x"], {}, {"x": "x"}, {"x": 1}):
            broken = copy.deepcopy(document)
            _node(broken, tuple(parents))[last] = value
            yield f"{path}={value!r}", broken
        broken = copy.deepcopy(document)
        parent = _node(broken, tuple(parents))
        value = parent.pop(last)
        yield f"{path} removed", broken
        if isinstance(parent, dict):
            broken = copy.deepcopy(broken)
            _node(broken, tuple(parents))[f"{last}s"] = value
            yield f"{path} misspelt", broken


@needs_crds
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_that_kuberay_refuses(kind: str) -> None:
    theirs = crd_validator(kind)
    whole = make_documents()[kind]
    assert theirs.is_valid(whole["spec"])
    document = _with_small_parts(whole)
    assert theirs.is_valid(document["spec"]) and not list(problems(document))
    num_refused = 0
    for told, broken in _broken(document):
        if not theirs.is_valid(broken["spec"]):
            num_refused += 1
            assert next(problems(broken), None), told
    assert num_refused > 200
