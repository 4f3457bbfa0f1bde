"""What is told before anything is read where Ray could not be started or joined, by every entry that needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher

from tatok_pipe.ray_runtime.cluster import _quieten, check_ray_can_start
from tests.entries import assert_told
from tests.infra.ray_head import ray_head

# With inputs of which nothing is there: a word about one of them would tell that it was looked for.
COMMANDS = {
    "tokenize_corpus": ["input.shards=/nowhere/*.tar", "output.url=out"],
    "train_ar": ["input.url=/nowhere", "output.url=out", "model.num_classes=2"],
    "train_tokenizer": ["input.shards=/nowhere/*.tar", "validation.shards=/nowhere/x.tar", "output.url=out"],
    "generate": ["checkpoint=/nowhere", "output.url=out"],
    "evaluate": ["tokenizer=/nowhere", "output.url=out"],
}
# Of a Slurm job, as clusters make them.
LONG = "/net/tscratch/people/somebody/slurm_jobdir/1355700_some_long_job_name/tmp.t0016"
# As Ray 2.60 prints it.
NEEDLESS = (
    "[2026-11-29 09:24:41,746 E 5758 5979] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: "
    "'57755078eb167786b676672401000000' has constructor arguments in the object store",
    "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable. Continuing to "
    "monitor.",
)
# Let the cluster say of itself that it is of another version, where those who join look it up.
DISGUISE = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
told = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))
told |= {"ray_version": "2.9.3", "python_version": "3.10.13"}
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(told).encode(), True, namespace=b"cluster")
"""


@pytest.mark.parametrize("entry", COMMANDS)
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets(
    entry: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, LONG)
    told = (
        rf"^{variable}={LONG}: too long by \d+ bytes for the names of Ray's sockets in it; set RAY_TMPDIR to"
    )
    assert_told(import_module(f"tatok_pipe.{entry}").main, COMMANDS[entry], told)


@pytest.mark.parametrize(("num_too_many", "is_told"), [(0, False), (1, True)])
def test_what_just_fits(num_too_many: int, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The longest name that Ray makes, as its own code writes it, has 107 bytes at most.
    rest = f"/ray/session_2026-11-29_09-24-41_746123_{os.getpid()}/sockets/plasma_store"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (106 - len(rest) + num_too_many))
    if is_told:
        assert_told(lambda argv: check_ray_can_start(), [], "too long by 1 bytes")
    else:
        check_ray_can_start()


def test_what_every_training_prints_is_dropped_and_nothing_else() -> None:
    _quieten()
    _quieten()
    batch = {
        "is_err": True,
        "pid": 1,
        "ip": "",
        "job": "",
        "lines": [*NEEDLESS, "[E] core_worker.cc:2465: other"],
    }
    global_worker_stdstream_dispatcher.emit(batch)
    assert batch["lines"] == ["[E] core_worker.cc:2465: other"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="its sockets have shorter names")
def test_ray_starts_in_the_longest_folder_that_is_let_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    start = "import ray; ray.init(num_cpus=1, include_dashboard=False); print('started')"
    process_digits = len(Path("/proc/sys/kernel/pid_max").read_text().strip())
    rest = f"/ray/session_2026-11-29_09-24-41_746123_{'9' * process_digits}/sockets/plasma_store"
    base = f"/tmp/{os.getpid()}-"
    folder = base + "x" * (107 - len(rest) - len(base))
    os.mkdir(folder)
    try:
        done = subprocess.run(
            [sys.executable, "-c", start], env=os.environ | {"RAY_TMPDIR": folder}, capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["rm", "-r", folder], check=True)
    assert done.returncode == 0 and "started" in done.stdout, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_another_version_is_told_by_its_versions(tmp_path: Path) -> None:
    with ray_head({}) as head:
        subprocess.run(
            [sys.executable, "-c", DISGUISE, head.gcs_address], env=head.env, check=True, timeout=120
        )
        env = head.env | {"RAY_ADDRESS": head.gcs_address}
        for entry in ("tokenize_corpus", "train_ar"):
            done = subprocess.run(
                [sys.executable, "-m", f"tatok_pipe.{entry}", *COMMANDS[entry]], env=env, cwd=tmp_path,
                capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
            assert done.returncode == 2, done.stderr
            *_, line = done.stderr.strip().splitlines()
            assert (
                f"error: RAY_ADDRESS={head.gcs_address}: that cluster runs Ray 2.9.3 on Python 3.10.13, this"
                in line
            )
            assert "Traceback" not in done.stderr and "/nowhere" not in done.stderr
            assert not (tmp_path / "out").exists()
