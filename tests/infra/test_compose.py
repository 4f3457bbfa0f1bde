"""The compose file and what it mounts: everything that can be checked without Docker."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for

import tatok_pipe
from tests.infra.promql import ALERTS, DASHBOARDS, INFRA

COMPOSE = INFRA / "compose"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")  # without it nothing starts
OPTIONAL = re.compile(r"\$\{(\w+):-[^}]*\}")
SECRET = re.compile(r"password|secret|access_key|token", re.IGNORECASE)


def read(name: str) -> Any:
    return yaml.safe_load((COMPOSE / name).read_text())


@pytest.fixture
def compose() -> dict[str, Any]:
    return read("docker-compose.yaml")


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


def schema_errors(document: dict[str, Any]) -> list[str]:
    """By the schema of the Compose specification."""
    path = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(path.read_text())
    return [error.message for error in validator_for(schema)(schema).iter_errors(document)]


def mounts(service: dict[str, Any]) -> list[list[str]]:
    """[source, target] or [source, target, mode]."""
    return [mount.split(":") for mount in service.get("volumes", ())]


def test_the_file_is_valid(compose: dict[str, Any]) -> None:
    assert schema_errors(compose) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "ray", "imagee"), "x"),
        (("services", "ray", "healthcheck", "retry"), 3),
        (("services", "grafana", "depends_on", "prometheus", "condition"), "healthy"),
        (("services", "seaweedfs", "ports"), "8333"),
        (("volume",), {}),
    ],
)
def test_a_typo_is_found(compose: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    broken = copy.deepcopy(compose)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert schema_errors(broken)


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"v?\d+(\.\d+)+(-cpu)?", tag), f"{name}: {service['image']}"
        if "build" in service:
            assert tag == f"{tatok_pipe.__version__}-cpu"
            context = (COMPOSE / service["build"]["context"]).resolve()
            assert context == INFRA.parent
            dockerfile = (context / service["build"]["dockerfile"]).read_text()
            for argument in service["build"]["args"]:
                assert re.search(rf"^ARG {argument}=", dockerfile, re.MULTILINE), argument
        else:
            assert image.count("/") == 1, f"{name}: {image}"


def test_nothing_listens_beyond_this_machine(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 4
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    for name, service in services.items():
        assert "network_mode" not in service, name


def test_services_have_no_privileges(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        if "build" in service:
            assert "user" not in service  # the image's own
            assert re.search(r"^USER [1-9]", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
        else:
            assert re.match(r"[1-9]\d*:", service["user"]), name
            assert service["read_only"] is True, name


def test_services_wait_for_healthy_ones(services: dict[str, dict[str, Any]]) -> None:
    def has_check(service: dict[str, Any]) -> bool:
        image_has = "build" in service and "\nHEALTHCHECK " in (INFRA / "Dockerfile").read_text()
        return image_has or {"test", "interval", "timeout", "retries"} <= set(service.get("healthcheck", ()))

    for name, service in services.items():
        assert has_check(service), name
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "profiles" not in services[needed], f"{name} needs {needed}, which is not always there"


def test_mounted_files_exist_and_are_read_only(compose: dict[str, Any], services: dict[str, Any]) -> None:
    named = set()
    for name, service in services.items():
        for source, *rest in mounts(service):
            if source.startswith("."):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
                assert rest[1:] == ["ro"], f"{name}: {source}"
            else:
                named.add(source)
    assert named == set(compose["volumes"])


def test_secrets_come_from_the_env_file(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            assert isinstance(value, str), (
                f"{name}: {key}"
            )  # YAML's own true and 1 read differently elsewhere
            if SECRET.search(key):
                assert REQUIRED.fullmatch(value), f"{name}: {key}"
    text = (COMPOSE / "docker-compose.yaml").read_text()
    required, optional = set(REQUIRED.findall(text)), set(OPTIONAL.findall(text))
    assert len(re.findall(r"(?<!\$)\$\{?\w", text)) == len(REQUIRED.findall(text)) + len(
        OPTIONAL.findall(text)
    )
    example = dict(
        line.split("=", 1)
        for line in (COMPOSE / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert {name for name, value in example.items() if not value} == required
    assert set(example) - required <= optional
    assert ".env" in (COMPOSE / ".gitignore").read_text().splitlines()


def test_ray_exports_its_metrics_where_prometheus_looks(services: dict[str, dict[str, Any]]) -> None:
    config = read("prometheus.yaml")
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "ray"
    (discovery,) = job["http_sd_configs"]
    head = services["ray"]["command"]
    assert discovery["url"] == "http://ray:8265/api/prometheus/sd"
    assert "--dashboard-port=8265" in head and "--dashboard-host=0.0.0.0" in head
    (keep,) = job["relabel_configs"]
    assert keep["action"] == "keep" and keep["source_labels"] == ["__address__"]
    assert re.fullmatch(keep["regex"], "172.18.0.3:8080") and not re.fullmatch(
        keep["regex"], "172.18.0.3:44217"
    )
    for name in ("ray", "worker"):
        assert "--metrics-export-port=8080" in services[name]["command"]
        assert services[name]["shm_size"] == "2gb"
        (store,) = (word for word in services[name]["command"] if word.startswith("--object-store-memory="))
        assert int(store.split("=")[1]) < 2 * 2**30
    targets = {target: COMPOSE / source for source, target, *_ in mounts(services["prometheus"])}
    assert "--config.file=/etc/prometheus/prometheus.yaml" in services["prometheus"]["command"]
    assert targets["/etc/prometheus/prometheus.yaml"] == COMPOSE / "prometheus.yaml"
    (rules,) = config["rule_files"]  # relative to the configuration
    assert targets[f"/etc/prometheus/{rules}"].resolve() == ALERTS


def test_grafana_finds_prometheus_and_the_dashboards(services: dict[str, dict[str, Any]]) -> None:
    targets = {target: (COMPOSE / source).resolve() for source, target, *_ in mounts(services["grafana"])}
    provisioning = "/etc/grafana/provisioning"
    assert targets[f"{provisioning}/datasources/tatok.yaml"] == COMPOSE / "grafana" / "datasources.yaml"
    assert targets[f"{provisioning}/dashboards/tatok.yaml"] == COMPOSE / "grafana" / "dashboards.yaml"
    (source,) = read("grafana/datasources.yaml")["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"] is True
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == read("prometheus.yaml")["global"]["scrape_interval"]
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    assert {path.parent for path in DASHBOARDS} == {targets[provider["options"]["path"]]}
    assert OPTIONAL.fullmatch(services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"])
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"].endswith(":-false}")


def test_the_object_storage_wants_credentials(services: dict[str, dict[str, Any]]) -> None:
    server, ray = services["seaweedfs"], services["ray"]
    assert server["environment"].items() <= ray["environment"].items()
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} == set(server["environment"])
    assert ray["environment"]["AWS_ENDPOINT_URL"] == "http://seaweedfs:8333"
    assert ("objects", "/data") in {(source, target) for source, target, *_ in mounts(server)}
    assert "-dir=/data" in server["command"]
    (bucket,) = (word.split("=")[1] for word in server["command"] if word.startswith("-bucket="))
    assert f"/buckets/{bucket}/" in server["healthcheck"]["test"][1]
    assert f"s3://{bucket}/" in (COMPOSE / "README.md").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "prometheus.yaml", tmp_path)
    shutil.copy(ALERTS, tmp_path)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
