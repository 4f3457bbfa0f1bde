"""Tokenizer training as users start it: a Ray Train job that is killed and goes on to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tatok_pipe import train_tokenizer
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tests.entries import assert_told

from .pictures import crop_members, write_shard

pytestmark = pytest.mark.ray

# A report of a worker is noticed this often, and with every checkpoint it waits for that: 2 s by default.
IN_A_HURRY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}

CONFIG = """
model:
  image_size: 32
  patch_size: 8
  num_globals: 2
  encoder: {width: 32, depth: 1, heads: 2}
  decoder: {width: 32, depth: 1, heads: 2}
  prior: {width: 32, depth: 1, heads: 2}
  global_codebook: {levels: [5, 5]}
  patch_codebook: {levels: [5, 5, 5]}
training: {batch_size: 8, joint_steps: 30, prior_steps: 10, decoder_steps: 10, learning_rate: 3.0e-3, warmup_steps: 4}
logging: {every_steps: 5, checkpoint_every_steps: 5}
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("training")
    (folder / "config.yaml").write_text(CONFIG)
    for i in range(2):
        write_shard(folder / f"train-{i}.tar", crop_members(6, first=6 * i))
    write_shard(folder / "held-out.tar", crop_members(6, first=12))
    return [
        str(folder / "config.yaml"),
        f"input.shards={folder}/train-*.tar",
        f"validation.shards={folder}/held-out.tar",
        "workers.cpus=1",
    ]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tatok_pipe.train_tokenizer", *arguments]


def train(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=os.environ | IN_A_HURRY, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training becomes that nothing happens to. The output is relative: Ray's workers have another folder."""
    folder = tmp_path_factory.mktemp("straight")
    done = train(*arguments, "output.url=out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_a_training_learns_and_leaves_what_it_promises(straight: Path) -> None:
    tokenizer = load_tokenizer(f"{straight}/tokenizer")
    curve = tokenizer.training["curve"]
    assert [point["step"] for point in curve] == list(range(5, 51, 5))
    assert curve[5]["mse"] < curve[0]["mse"]
    assert tokenizer.training["held_out"]["num_images"] == 6
    card = (straight / "tokenizer/README.md").read_text()
    assert tokenizer.fingerprint in card and f"{tokenizer.training['held_out']['psnr_none']:.2f}" in card


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 4)])
def test_a_training_that_is_ended_comes_to_the_same_weights(
    arguments: list[str], straight: Path, tmp_path: Path, end: signal.Signals, code: int
) -> None:
    ended = [*arguments, f"output.url={tmp_path}/out"]
    process = subprocess.Popen(command(*ended), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("out/checkpoints/step-*/state.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(end)
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
        process.wait()
    time.sleep(3)  # Ray's processes notice that their driver is gone
    assert not (tmp_path / "out/tokenizer").exists()
    done = train(*ended)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stdout + done.stderr
    again, tokenizer = load_tokenizer(f"{tmp_path}/out/tokenizer"), load_tokenizer(f"{straight}/tokenizer")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.training["curve"] == tokenizer.training["curve"]


@pytest.mark.slow
def test_a_broken_shard_is_one_line_and_not_tried_again(arguments: list[str], tmp_path: Path) -> None:
    whole = Path(arguments[1].split("=")[1].replace("*", "0"))
    (tmp_path / "broken.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = train(*arguments, f"input.shards={tmp_path}/broken.tar", f"output.url={tmp_path}/out")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len([line for line in done.stderr.splitlines() if "broken.tar" in line]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["input.shards="], "input.shards: not given"),
        (["workers.count=4"], "workers.count=4"),
        (["training.joint_steps=-1"], "training"),
        (["model.patch_size=7"], "image_size=32, patch_size=7"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], changes: list[str], message: str, tmp_path: Path) -> None:
    assert_told(train_tokenizer.main, [*arguments, f"output.url={tmp_path}/out", *changes], message)


def test_training_on_the_held_out_shards_is_refused(arguments: list[str], tmp_path: Path) -> None:
    same = arguments[1].split("=")[1]
    given = [*arguments, f"validation.shards={same}", f"output.url={tmp_path}/out"]
    assert_told(train_tokenizer.main, given, "in validation.shards")
