"""Trainings on nodes that die, come and are drained: the world shrinks and grows, and no step is lost that a
checkpoint could have saved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tests.faults.nodes import cluster, drain
from tests.jobs import IN_A_HURRY, running, wait_for
from tests.pictures import crop_members, write_shard
from tests.test_train_ar import CONFIG, command, prepare, run
from tests.test_train_tokenizer import CONFIG as TOKENIZER_CONFIG
from tests.test_train_tokenizer import command as tokenizer_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    config = CONFIG.replace("steps: 200", f"steps: {STEPS}").replace("every_steps: 20,", "every_steps: 200,")
    config = config.replace("share: 0.1, every_steps: 100", "share: 0").replace(
        "every_steps: 10}", "every_steps: 50}"
    )
    return prepare(folder, config)


def train_losses(url: str) -> list[float]:
    return [point["loss"] for point in load_generator(url).training["curve"] if point["split"] == "train"]


def saved_for_leaving(log: Path) -> list[int]:
    """Steps of the checkpoints that were made since a node was leaving."""
    return [int(step) for step in re.findall(r"a node is leaving: checkpoint at step (\d+)", log.read_text())]


def test_the_world_shrinks_grows_and_is_drained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(folder, f"output.url={tmp_path}/straight", timeout_s=900)
    assert straight.returncode == 0, straight.stderr
    expected = train_losses(f"{tmp_path}/straight/generator")

    log = tmp_path / "log"
    arguments = command(folder, f"output.url={tmp_path}/out", "workers.min=1", "workers.max=2")
    with cluster(os.environ | IN_A_HURRY) as nodes:
        nodes.add_node(num_cpus=1)
        doomed = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with running(arguments, log) as process:
            wait_for(r"worker 1 of 2", log, process)
            wait_for(r"step 250/", log, process)
            nodes.remove_node(doomed, allow_graceful=False)
            wait_for(r"worker 0 of 1", log, process)
            wait_for(r"resumed at step \d+", log, process)
            nodes.add_node(num_cpus=1)
            drained = nodes.add_node(num_cpus=1)
            grown = wait_for(r"(?s)worker 0 of 1.*worker 1 of 2", log, process)
            wait_for(r"(?s)worker 0 of 1.*worker 1 of 2.*step \d+/", log, process)
            drain(nodes.address, drained.node_id, deadline_s=10)
            assert process.wait(timeout=600) == 0, log.read_text()
    told = log.read_text()
    assert grown
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", told)]
    assert len(resumed) >= 2 and resumed == sorted(resumed)
    found = train_losses(f"{tmp_path}/out/generator")
    assert len(found) == len(expected)
    # The same batches in the same order. Sums over another number of workers round otherwise, and the difference grows
    # from step to step, so the tight bound ends 100 steps after the world first shrank.
    assert found[:6] == pytest.approx(expected[:6], rel=1e-3)
    assert sum(found[-10:]) == pytest.approx(sum(expected[-10:]), rel=0.03)


def test_a_drain_makes_a_checkpoint_of_the_very_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    arguments = command(
        folder,
        f"output.url={tmp_path}/out",
        "workers.min=1",
        "workers.max=2",
        "checkpoints.every_steps=1000000",
    )
    with cluster(os.environ | IN_A_HURRY) as nodes:
        nodes.add_node(num_cpus=1)
        leaving = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with running(arguments, log) as process:
            wait_for(r"worker 1 of 2", log, process)
            wait_for(r"step 100/", log, process)
            drain(nodes.address, leaving.node_id, deadline_s=8)
            first = int(wait_for(r"a node is leaving: checkpoint at step (\d+)", log, process)[1])
            # The head and its driver may stay, the node goes.
            resumed = int(wait_for(r"resumed at step (\d+)", log, process)[1])
            assert process.wait(timeout=600) == 0, log.read_text()
    saved = saved_for_leaving(log)
    assert first >= 100 and resumed == saved[-1] and len(saved) <= 2
    assert len(train_losses(f"{tmp_path}/out/generator")) == STEPS // 50


def test_a_tokenizers_training_leaves_a_node_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its one worker is on the node that goes, and goes on upon the one that came."""
    config = TOKENIZER_CONFIG.replace("joint_steps: 30", "joint_steps: 400")
    (tmp_path / "config.yaml").write_text(
        config.replace("{every_steps: 5, keep", "{every_steps: 1000000, keep")
    )
    for name in ("train", "held-out"):
        write_shard(tmp_path / f"{name}.tar", crop_members(6, first=6 * (name == "train")))
    arguments = tokenizer_command(
        f"{tmp_path}/config.yaml", f"input.shards={tmp_path}/train.tar", "workers.cpus=1",
        f"validation.shards={tmp_path}/held-out.tar", f"output.url={tmp_path}/out",
    )  # fmt: skip
    log = tmp_path / "log"
    with cluster(os.environ | IN_A_HURRY) as nodes:
        leaving = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with running(arguments, log) as process:
            wait_for(r"step 50/", log, process)
            nodes.add_node(num_cpus=1)
            drain(nodes.address, leaving.node_id, deadline_s=8)
            first = int(wait_for(r"a node is leaving: checkpoint at step (\d+)", log, process)[1])
            resumed = int(wait_for(r"resumed at step (\d+)", log, process)[1])
            assert process.wait(timeout=600) == 0, log.read_text()
    saved = saved_for_leaving(log)
    assert first >= 50 and resumed == saved[-1] and len(saved) <= 2
    curve = load_tokenizer(f"{tmp_path}/out/tokenizer").training["curve"]
    assert [point["step"] for point in curve] == list(range(5, 421, 5))
