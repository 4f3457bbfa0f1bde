"""What is no manifest: the submitting scripts, the image, the cluster without Kubernetes."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.manifests import REPOSITORY, render
from tests.infra.ray_head import BIN
from tests.infra.test_manifests import JOBS, SITE, assert_is_command, needs_kubectl

SCRIPTS = (*JOBS, "nightly_tokenize")


def submitted(name: str, folder: Path, **env: str) -> list[str]:
    """What a script says to `ray`: a program of that name that writes down its arguments."""
    recorder = folder / "ray"
    recorder.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    recorder.chmod(0o755)
    done = subprocess.run(
        [REPOSITORY / "jobs" / f"{name}.sh", "actors.min=1" if "train" not in name else "seed=7"],
        env={**SITE, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **env},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_submits_a_command(name: str, tmp_path: Path) -> None:
    words = submitted(name, tmp_path, RAY_API_SERVER_ADDRESS="http://head:8265", TATOK_RUN="3")
    options, command = words[: words.index("--")], words[words.index("--") + 1 :]
    assert options[:2] == ["job", "submit"]
    (identity,) = [option for option in options if option.startswith("--submission-id=")]
    assert re.fullmatch(rf"--submission-id={name.replace('_', '-')}(-\d{{8}})?-3", identity)
    assert f"--working-dir={REPOSITORY}" in options
    assert ("--no-wait" in options) == (name != "nightly_tokenize")
    assert_is_command(command)
    words = submitted(name, tmp_path, RAY_API_SERVER_ADDRESS="http://head:8265", TATOK_WORKING_DIR="")
    assert not [word for word in words if word.startswith("--working-dir")]


@needs_kubectl
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_and_a_rayjob_run_the_same(name: str, tmp_path: Path) -> None:
    words = submitted(name, tmp_path, RAY_API_SERVER_ADDRESS="http://head:8265")
    (job,) = [one for one in render(REPOSITORY / "jobs/kuberay" / name) if one["kind"] == "RayJob"]
    entrypoint = re.sub(r"\$(\w+)", lambda match: SITE[match[1]], job["spec"]["entrypoint"])
    # The size of the cluster is the RayJob's to say; what the script was given beside is its own.
    expected = [word for word in shlex.split(entrypoint) if not word.startswith("actors.max=")]
    assert words[words.index("--") + 1 : -1] == expected


@pytest.mark.parametrize("missing", ["RAY_API_SERVER_ADDRESS", "TATOK_BUCKET", "TATOK_IMAGES"])
def test_a_script_says_what_it_lacks(missing: str) -> None:
    env = {"PATH": os.environ["PATH"], "RAY_API_SERVER_ADDRESS": "http://head:8265", **SITE}
    del env[missing]
    done = subprocess.run(
        [REPOSITORY / "jobs/train_ar.sh"], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert missing in done.stderr and len(done.stderr.splitlines()) == 1


def test_scripts_pass_shellcheck() -> None:
    scripts = [*sorted((REPOSITORY / "jobs").glob("*.sh")), REPOSITORY / ".ci/run"]
    command = [BIN / "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_does_what_the_readme_says_in_its_order() -> None:
    """So that a test which cannot stand what the demo leaves is found by the first run of it."""
    quickstart = (REPOSITORY / "README.md").read_text().partition("## Quickstart")[2].partition("\n## ")[0]
    told = re.findall(r"^make (\w+)", quickstart, re.MULTILINE)
    done = re.findall(r"^make (\w+)$", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)
    assert told == ["demo", "test"] and done == ["check", *told]
    targets = re.findall(r"^([a-z-]+):.* ## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(done) <= set(targets)


def test_the_image_passes_hadolint_and_a_mistake_does_not(tmp_path: Path) -> None:
    def lint(path: Path) -> subprocess.CompletedProcess[str]:
        command = [BIN / "hadolint", path]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    good = REPOSITORY / "infra/Dockerfile"
    done = lint(good)
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text(re.sub(r"^FROM python:\S+$", "FROM python:latest", good.read_text(), flags=re.MULTILINE))
    assert "latest" in lint(bad).stdout


def test_the_image_is_made_of_what_is_there() -> None:
    text = (REPOSITORY / "infra/Dockerfile").read_text()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"tatok_pipe", "configs", "jobs"} <= set(sources)
    let_in = re.findall(r"^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert source in let_in, f"{source}: left out by .dockerignore"
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)


def _edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(cluster: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node = cluster
        for name in parents:
            node = node[name]
        node[last] = value

    return edit


def test_the_cluster_on_aws_is_what_ray_up_takes() -> None:
    cluster = yaml.safe_load((REPOSITORY / "infra/aws/cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(cluster)))
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}
    for path, value in (
        ("max_wokers", 3),
        ("docker.imge", "x"),
        ("available_node_types.head.min_wrkers", 1),
        ("available_node_types.gpu-spot.resources.GPU", "one"),
    ):
        broken = copy.deepcopy(cluster)
        _edit(path, value)(broken)
        with pytest.raises(Exception, match=path.rpartition(".")[2] if value != "one" else "not of type"):
            validate_config(prepare_config(broken))
