"""Manifests: no field that its schema does not know, what they promise, and that what they start is a command."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tatok_pipe import __version__
from tatok_pipe.config.load import load_config
from tests.infra.manifests import REPOSITORY, kubectl, problems, render

JOBS = ("evaluate", "generate_50k", "tokenize_imagenet", "train_ar", "train_tokenizer")
RENDERED = (
    "infra/kuberay",
    *(f"jobs/kuberay/{name}" for name in (*JOBS, "nightly_raycronjob", "nightly_tokenize")),
)
SITE = {"TATOK_BUCKET": "s3://bucket/tatok", "TATOK_IMAGES": "s3://bucket/images"}
CONFIGS = {
    "evaluate": "tatok_pipe.commands.evaluate.options.EvaluateConfig",
    "generate": "tatok_pipe.commands.generate.options.GenerateConfig",
    "tokenize_corpus": "tatok_pipe.commands.tokenize_corpus.options.TokenizeCorpusConfig",
    "train_ar": "tatok_pipe.commands.train_ar.options.TrainArConfig",
    "train_tokenizer": "tatok_pipe.commands.train_tokenizer.options.TrainTokenizerConfig",
}

needs_kubectl = pytest.mark.skipif(
    kubectl() is None, reason="kubectl renders these manifests, and is not installed"
)


def written() -> list[Path]:
    """Every manifest in the repository, but for those that are kustomize's own."""
    paths = [*REPOSITORY.glob("infra/kuberay/**/*.yaml"), *REPOSITORY.glob("jobs/kuberay/**/*.yaml")]
    return sorted(path for path in paths if path.name != "kustomization.yaml")


@pytest.mark.parametrize("path", written(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_manifest_is_valid_as_written(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        if document["kind"] == "RayCronJob":  # its jobTemplate is copied into it
            document["spec"]["jobTemplate"] = {"entrypoint": "true"}
        assert list(problems(document)) == []


@needs_kubectl
@pytest.mark.parametrize("folder", RENDERED)
def test_every_manifest_is_valid_as_rendered(folder: str) -> None:
    documents = render(REPOSITORY / folder)
    assert {document["kind"] for document in documents} & {"RayCluster", "RayJob", "RayCronJob"}
    for document in documents:
        assert list(problems(document)) == []
        assert document["metadata"].get("namespace", "tatok") == "tatok"


def _misspell(document: dict[str, Any], path: str) -> None:
    *parents, last = path.split(".")
    node: Any = document
    for name in parents:
        node = node[int(name) if name.isdigit() else name]
    node[f"{last}s"] = node.pop(last)


@needs_kubectl
@pytest.mark.parametrize(
    ("folder", "kind", "path"),
    [
        ("infra/kuberay", "RayCluster", "spec.enableInTreeAutoscaling"),
        ("infra/kuberay", "RayCluster", "spec.workerGroupSpecs.0.maxReplicas"),
        ("infra/kuberay", "RayCluster", "spec.headGroupSpec.template.spec.containers.0.image"),
        ("infra/kuberay", "NetworkPolicy", "spec.podSelector"),
        ("infra/kuberay", "PodDisruptionBudget", "spec.minAvailable"),
        ("infra/kuberay", "ServiceAccount", "metadata.annotations"),
        ("jobs/kuberay/train_ar", "RayJob", "spec.ttlSecondsAfterFinished"),
        ("jobs/kuberay/train_ar", "RayJob", "spec.rayClusterSpec.rayVersion"),
        ("jobs/kuberay/train_ar", "RayJob", "spec.submitterPodTemplate.spec.containers.0.resources.requests"),
        ("jobs/kuberay/nightly_tokenize", "CronJob", "spec.concurrencyPolicy"),
        (
            "jobs/kuberay/nightly_tokenize",
            "CronJob",
            "spec.jobTemplate.spec.template.spec.serviceAccountName",
        ),
        ("jobs/kuberay/nightly_tokenize", "Role", "rules.0.verbs"),
        ("jobs/kuberay/nightly_raycronjob", "RayCronJob", "spec.jobTemplate.backoffLimit"),
        ("infra/kuberay/monitoring", "PodMonitor", "spec.podMetricsEndpoints.0.interval"),
    ],
)
def test_a_planted_typo_is_found(folder: str, kind: str, path: str) -> None:
    document = next(one for one in render(REPOSITORY / folder) if one["kind"] == kind)
    assert list(problems(document)) == []
    _misspell(document, path)
    last = path.rpartition(".")[2]
    assert any(f"{last}s" in problem or f"'{last}'" in problem for problem in problems(document))


def cluster_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in RENDERED:
        for document in render(REPOSITORY / folder):
            spec = document.get("spec", {})
            if document["kind"] == "RayCronJob":
                spec = spec["jobTemplate"]
            if document["kind"].startswith("Ray"):
                yield folder, spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pod_templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


@needs_kubectl
def test_clusters_keep_their_promises() -> None:
    found = list(cluster_specs())
    assert len(found) == len(RENDERED)
    ray = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    for folder, spec in found:
        assert ray and spec["rayVersion"] == ray[1], folder
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", folder
        assert spec["autoscalerOptions"]["version"] == "v2" and spec["authOptions"] == {"mode": "token"}, (
            folder
        )
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        assert set(groups) == {"gpu-spot", "gpu-on-demand", "cpu"}, folder
        assert all(group["minReplicas"] == 0 for group in groups.values()), folder
        for template in pod_templates(spec):
            pod = template["spec"]
            (container,) = pod["containers"]
            env = {each["name"]: each["value"] for each in container["env"]}
            assert pod["restartPolicy"] == "Never", folder
            assert pod["terminationGracePeriodSeconds"] > float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert pod["securityContext"]["runAsUser"] > 0
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
            assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tatok-pipe"
            assert container["image"].endswith(f":{__version__}")
            assert {"name": "metrics", "containerPort": 8080} in container["ports"]
            # Credentials come from elsewhere: a Secret, or the service account.
            assert not [name for name in env if re.search(r"SECRET|KEY|PASSWORD|CREDENTIAL", name)]
            assert {"secretRef": {"name": "tatok-object-store", "optional": True}} in container["envFrom"]


@needs_kubectl
@pytest.mark.parametrize("name", [*JOBS, "nightly_tokenize"])
def test_a_job_is_one_submission_whose_head_is_kept(name: str) -> None:
    documents = render(REPOSITORY / "jobs/kuberay" / name)
    (job,) = [document for document in documents if document["kind"] == "RayJob"]
    (budget,) = [document for document in documents if document["kind"] == "PodDisruptionBudget"]
    assert job["metadata"]["name"] == name.replace("_", "-")
    spec = job["spec"]
    assert spec.get("jobId") == (None if name == "nightly_tokenize" else job["metadata"]["name"])
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] and spec["backoffLimit"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    wanted = dict(budget["spec"]["selector"]["matchLabels"])
    assert wanted.pop("ray.io/node-type") == "head"  # KubeRay's own
    assert wanted and wanted.items() <= head.items()
    (submitter,) = spec["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["image"].endswith(f":{__version__}")
    assert_is_command(shlex.split(_fill(spec["entrypoint"])))


@needs_kubectl
def test_trainings_use_no_spot_nodes() -> None:
    for name in ("train_ar", "train_tokenizer"):
        (spec,) = [spec for folder, spec in cluster_specs() if folder == f"jobs/kuberay/{name}"]
        groups = {group["groupName"]: group["maxReplicas"] for group in spec["workerGroupSpecs"]}
        assert groups["gpu-spot"] == 0 < groups["gpu-on-demand"]


@needs_kubectl
def test_nights_do_not_overlap_and_their_template_never_runs() -> None:
    documents = {
        document["kind"]: document for document in render(REPOSITORY / "jobs/kuberay/nightly_tokenize")
    }
    assert documents["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    template = documents["RayJob"]
    assert template["spec"]["suspend"] is True
    assert "kueue.x-k8s.io/queue-name" not in template["metadata"]["labels"]
    (container,) = documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == template["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["image"]
    assert (REPOSITORY / container["args"][1]).is_file() and container["args"][2] == template["metadata"][
        "name"
    ]
    assert documents["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}
    ]
    (alternative,) = [
        document
        for document in render(REPOSITORY / "jobs/kuberay/nightly_raycronjob")
        if document["kind"] == "RayCronJob"
    ]
    expected = copy.deepcopy(template["spec"])
    del expected["suspend"]
    assert alternative["spec"]["jobTemplate"] == expected


def _fill(text: str) -> str:
    return re.sub(r"\$(\w+)", lambda match: SITE[match[1]], text)


def assert_is_command(words: list[str]) -> None:
    """`python -m tatok_pipe.ENTRY …` whose options the entry knows."""
    assert words[:2] == ["python", "-m"]
    entry = words[2].removeprefix("tatok_pipe.")
    module, _, name = CONFIGS[entry].rpartition(".")
    arguments = [str(REPOSITORY / word) if word.startswith("configs/") else word for word in words[3:]]
    load: Callable[..., Any] = load_config
    load(getattr(import_module(module), name), arguments, prog=entry, description="")
