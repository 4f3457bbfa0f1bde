"""Tokenizer training as users start it: a Ray Train job that is killed and goes on to the same weights."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tatok_pipe import train_tokenizer
from tatok_pipe.commands.train_tokenizer import run as train_tokenizer_run
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.encoding.panel import load_panel
from tatok_pipe.runs.lease import LEASE, hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tests.entries import assert_told
from tests.jobs import IN_A_HURRY, running, wait_for
from tests.training.test_tensorboard import read_events

from .pictures import crop_members, write_shard

pytestmark = pytest.mark.ray

CONFIG = """
model:
  image_size: 32
  patch_size: 8
  num_globals: 2
  encoder: {width: 32, depth: 1, heads: 2}
  decoder: {width: 32, depth: 1, heads: 2}
  prior: {width: 32, depth: 1, heads: 2}
  search_passes: 0
  global_codebook: {kind: fsq, levels: [5, 5]}
  patch_codebook: {kind: fsq, levels: [5, 5, 5]}
training:
  {start: random, batch_size: 8, joint_steps: 30, prior_steps: 10, decoder_steps: 10, learning_rate: 3.0e-3,
   mix: {gain: 0.25, entropy: 0.15, random: 0.25}, warmup_steps: 4, ema_decay: 0.9, loss: {perceptual: 0.1}}
validation: {every_steps: 25, panel_images: 3}
logging: {every_steps: 5}
checkpoints: {every_steps: 5, keep: 2}
"""


CLOSED_FORM = [
    "training.start=closed_form", "training.start_crops=48", "model.global_codebook.kind=vq",
    "model.global_codebook.codebook_size=16", "model.patch_codebook.kind=vq", "model.patch_codebook.codebook_size=64",
    "model.patch_codebook.code_dim=16", "model.search_passes=1",
]  # fmt: skip


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
    assert {"l1", "mse", "perceptual", "drop_cost", "global_nats", "patch_nats"} <= set(curve[0])
    held_out = tokenizer.training["held_out_curve"]
    assert [point["step"] for point in held_out] == [25, 50]
    assert held_out[1]["psnr_all"] > held_out[1]["psnr_globals"]
    assert tokenizer.training["held_out"]["num_images"] == 6
    assert len(list((straight / "checkpoints").glob("step-*"))) == 2
    card = (straight / "tokenizer/README.md").read_text()
    assert tokenizer.fingerprint in card and f"{tokenizer.training['held_out']['psnr_none']:.2f}" in card


def test_tensorboard_has_the_curves_and_pictures(arguments: list[str], straight: Path) -> None:
    (path,) = (straight / "tensorboard").iterdir()
    values = {
        (value.tag, event.step): value
        for event in read_events(path.read_bytes())
        for value in event.summary.value
    }
    curve = load_tokenizer(f"{straight}/tokenizer").training["curve"]
    assert values["train/mse", 20].simple_value == pytest.approx(curve[3]["mse"], abs=1e-5)
    assert ("held_out/psnr_half", 50) in values and ("speed/images_per_s", 50) in values
    (picture,) = (
        value.image for (tag, step), value in values.items() if value.HasField("image") and step == 25
    )
    # As it was given: a name that TensorBoard's writer changes is told at every validation.
    assert ("held_out/original_all_half_quarter_globals", 25) in values
    with Image.open(io.BytesIO(picture.encoded_image_string)) as panel:
        assert panel.size == (5 * 32, 3 * 32)
        pixels = np.asarray(panel)
    (first, *_) = load_panel([arguments[2].split("=")[1]], 32, 1)
    assert np.array_equal(pixels[:32, :32], (first.permute(1, 2, 0) * 255).round().byte().numpy())
    assert not np.array_equal(pixels[:32, 32:64], pixels[:32, 128:])


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_a_dry_run_tells_sizes_and_trains_nothing(
    arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    given = [*arguments, f"model.global_codebook.kind={kind}", f"model.patch_codebook.kind={kind}"]
    with caplog.at_level("INFO"):
        assert train_tokenizer.main([*given, f"output.url={tmp_path}/out", "dry_run=true"]) == 0
    told = "\n".join(caplog.messages)
    config = load_config(TrainTokenizerConfig, given, prog="", description="").model
    num_weights = sum(parameter.numel() for parameter in TaTok(config).parameters())
    assert f"{num_weights / 1e6:.2f} M weights" in told and "GFLOP" in told and "GiB" in told
    assert "30 joint + 10 prior + 10 decoder steps" in told
    assert not (tmp_path / "out").exists()


def test_manifests_are_trained_on(arguments: list[str], tmp_path: Path) -> None:
    """Whatever their labels are; what is on web servers only where it is said."""
    lines = '{"url": "1.jpg", "label": "3"}\n{"url": "2.jpg", "label": "cat"}\n'
    (tmp_path / "train.jsonl").write_text(lines)
    (tmp_path / "held-out.jsonl").write_text('{"url": "https://example.org/3.jpg"}\n')
    given = [*arguments, f"output.url={tmp_path}/out", "dry_run=true", "workers.count=8"]
    given += [f"input.shards={tmp_path}/train.jsonl", f"validation.shards={tmp_path}/held-out.jsonl"]
    assert_told(train_tokenizer.main, given, r"validation.shards=.*; validation.other_stores=true opens them")
    told = "workers.count=8: expected at most one worker an image shard, input.shards=.*/train.jsonl has 1"
    assert_told(train_tokenizer.main, [*given, "validation.other_stores=true"], told)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_closed_form_is_looked_at_and_trained_on(arguments: list[str], tmp_path: Path) -> None:
    """Two workers, each with its shard; the decoder comes first then."""
    done = train(
        *arguments, f"output.url={tmp_path}/out", *CLOSED_FORM, "workers.count=2", "training.decoder_steps=20",
        "training.joint_steps=5", "training.prior_steps=5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert "closed form from 48 crops, then 20 decoder + 5 joint + 5 prior steps" in told
    assert "round 4 of 4 of search, codewords and regression" in told
    training = load_tokenizer(f"{tmp_path}/out/tokenizer").training
    stages = [point["stage"] for point in training["curve"]]
    assert stages == ["decoder"] * 4 + ["joint", "prior"]
    looks = training["held_out_curve"]
    assert [look["step"] for look in looks] == [0, 25, 30]
    assert looks[0]["psnr_all"] > looks[0]["psnr_half"] > looks[0]["psnr_globals"]
    assert "started in closed form from 48 crops" in Path(f"{tmp_path}/out/tokenizer/README.md").read_text()


def test_a_training_goes_on_from_a_tokenizer(arguments: list[str], straight: Path, tmp_path: Path) -> None:
    """Its entropy model anew, of another size; all else stays."""
    steps = [
        "training.decoder_steps=0",
        "training.joint_steps=0",
        "training.prior_steps=5",
        "model.prior.depth=2",
    ]
    done = train(
        *arguments, "training.start_from=out", f"output.url={tmp_path}/out", *steps, cwd=straight.parent
    )
    assert done.returncode == 0, done.stderr
    before, after = load_tokenizer(f"{straight}/tokenizer"), load_tokenizer(f"{tmp_path}/out/tokenizer")
    weights = before.model.state_dict()
    for name, value in after.model.state_dict().items():
        assert name.startswith("prior.") or torch.equal(value, weights[name]), name
    card = Path(f"{tmp_path}/out/tokenizer/README.md").read_text()
    told = f"started from the tokenizer of fingerprint `{before.fingerprint[:12]}`, but for its entropy model, made by"
    assert told in card and "  - 50 steps of 8 images" in card


@pytest.mark.slow
def test_two_workers_train_and_go_on_as_one(arguments: list[str], tmp_path: Path) -> None:
    """With all losses. Two halves of a batch are other masks than one batch, so only that it learns is compared."""
    given = [
        *arguments, f"output.url={tmp_path}/out", "training.loss.adversarial=0.1", "training.loss.rate=0.001",
        "training.loss.adversarial_start_step=5", "training.loss.discriminator.width=8",
        "training.loss.discriminator.depth=1", "training.microbatch_size=3",
    ]  # fmt: skip
    process = subprocess.Popen(
        command(*given, "workers.count=2"), env=os.environ | IN_A_HURRY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_checkpoint(process, tmp_path, at_least=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 4
    finally:
        process.kill()
        process.wait()
    done = train(*given, "workers.count=1")
    assert done.returncode == 0, done.stderr
    assert "1 workers, 2 before" in done.stdout + done.stderr
    curve = load_tokenizer(f"{tmp_path}/out/tokenizer").training["curve"]
    assert [point["step"] for point in curve] == list(range(5, 51, 5))
    assert curve[5]["mse"] < curve[0]["mse"]
    assert {"adversarial", "discriminator", "patch_rate_nats", "perceptual"} <= set(curve[2])


def test_images_to_measure_on_come_from_every_shard(arguments: list[str]) -> None:
    shards = [arguments[1].split("=")[1].replace("*", str(number)) for number in range(2)]
    both, first = load_panel(shards, 32, 4), load_panel(shards[:1], 32, 100)
    assert len(both) == 4 and len(first) == 6
    assert torch.equal(both[:2], first[:2]) and not torch.equal(both[2:], first[2:4])


def wait_for_checkpoint(process: subprocess.Popen[Any], folder: Path, *, at_least: int = 0) -> None:
    deadline = time.monotonic() + 200
    while not any(
        int(path.parent.name.split("-")[1]) >= at_least
        for path in folder.glob("out/checkpoints/step-*/rank-0.json")
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 4)])
def test_a_training_that_is_ended_comes_to_the_same_weights(
    arguments: list[str], straight: Path, tmp_path: Path, end: signal.Signals, code: int
) -> None:
    ended = [*arguments, f"output.url={tmp_path}/out"]
    process = subprocess.Popen(command(*ended), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_checkpoint(process, tmp_path)
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
    assert again.training["held_out_curve"] == tokenizer.training["held_out_curve"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(arguments: list[str], straight: Path, tmp_path: Path) -> None:
    """One bit of the newest one, of a training that was done: its last steps are done again."""
    shutil.copytree(straight, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/tokenizer")
    before, newest = sorted((tmp_path / "out/checkpoints").glob("step-*"))
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    done = train(*arguments, f"output.url={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert f"{newest.name}: state.safetensors is not what was written; going back to the one before" in told
    assert f"resumed at step 45 from {before.name}" in told
    weights = "tokenizer/model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (straight / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.s3
def test_a_killed_worker_is_back_and_comes_to_the_same_weights(
    arguments: list[str], straight: Path, s3_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running(command(*arguments, f"output.url={s3_url}/out"), log) as process:
        worker = int(wait_for(r"worker 0 of 1: process (\d+)", log, process)[1])
        wait_for("step 15/50", log, process)
        os.kill(worker, signal.SIGKILL)
        wait_for(r"resumed at step (10|15|20)\b", log, process)
        assert process.wait(timeout=150) == 0, log.read_text()
    again, tokenizer = load_tokenizer(f"{s3_url}/out/tokenizer"), load_tokenizer(f"{straight}/tokenizer")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.training["curve"] == tokenizer.training["curve"]


@pytest.mark.slow
def test_what_is_changed_on_the_way_is_written_down(
    arguments: list[str], straight: Path, tmp_path: Path
) -> None:
    """The newest checkpoint is torn, so that there are steps to do otherwise."""
    shutil.copytree(straight, tmp_path / "out")
    (newest,) = (tmp_path / "out/checkpoints").glob("step-000000050-*")
    (newest / "rank-0.json").unlink()
    done = train(*arguments, f"output.url={tmp_path}/out", "training.learning_rate=1e-3")
    assert done.returncode == 0, done.stderr
    told = "from step 45 on: training.learning_rate=0.001 (0.003 before)"
    assert "rank-0.json is missing" in done.stdout + done.stderr and told in done.stdout + done.stderr
    changes = {"training.learning_rate": [0.003, 0.001]}
    assert load_tokenizer(f"{tmp_path}/out/tokenizer").training["changes"] == [
        {"step": 45, "settings": changes}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_broken_shard_is_one_line_and_not_tried_again(
    arguments: list[str], tmp_path: Path, count: int
) -> None:
    """One worker of two meets it, while the other one waits for that to take the step."""
    whole = Path(arguments[1].split("=")[1].replace("*", "0"))
    (tmp_path / "broken.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if count == 2:
        shutil.copy(whole, tmp_path / "whole.tar")
    given = [f"input.shards={tmp_path}/*.tar", f"output.url={tmp_path}/out", f"workers.count={count}"]
    done = train(*arguments, *given)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "broken.tar" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["input.shards="], "input.shards: not given"),
        (["validation.shards= "], "validation.shards= : empty"),
        (["validation.shards=/nowhere/*.tar"], "validation.shards: /nowhere"),
        (["workers.count=4"], "workers.count=4"),
        (["seed=-1"], "seed=-1: expected at least 0"),
        (["training.joint_steps=-1"], "training.joint_steps=-1: expected at least 0"),
        (["model.patch_size=7"], "image_size=32, patch_size=7"),
        (
            [
                "training.loss.adversarial=0.1",
                "training.loss.adversarial_start_step=9",
                "training.loss.discriminator.depth=4",
            ],
            "images of 48 pixels",
        ),
        (["training.loss.adversarial=0.1"], "adversarial_start_step=20000: expected less than 50"),
        (["training.loss.rate=0.1", "model.patch_codebook.kind=vq"], "training.loss.rate=0.1"),
        (["training.start=closed_form"], "model.global_codebook.kind=fsq: expected vq"),
        (
            [*CLOSED_FORM, "training.start_crops=40", "model.patch_codebook.codebook_size=200"],
            "training.start_crops=40: gives 40 thumbnails and 160 patches for codebooks of 16 and 200; expected at "
            "least 52",
        ),
        (
            ["model.search_passes=1"],
            "search_passes=1: expected 0 with a patch codebook of kind fsq",
        ),
        (["training.mix.random=0.9"], "training.mix"),
        (
            ["training.start_from=packaged"],
            "start_from=packaged: a tokenizer of another model than model.image",
        ),
        (["input.plain_share=1"], "input.plain_share=1.0: expected at least 0 and less than 1"),
        (["input.max_scale=0.5"], "input.max_scale=0.5: expected at least 1"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], changes: list[str], message: str, tmp_path: Path) -> None:
    assert_told(train_tokenizer.main, [*arguments, f"output.url={tmp_path}/out", *changes], message)


def test_nothing_is_begun_where_another_training_lives_or_nothing_can_be_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tokenizer_run, "start_ray", lambda **_: pytest.fail("Ray was started"))
    given = arguments
    with hold_output(f"{tmp_path}/out", StopSignal()):
        told = rf"output.url={tmp_path}/out: a run that lives writes there, process {os.getpid()} on "
        assert_told(train_tokenizer.main, [*given, f"output.url={tmp_path}/out"], told, code=3)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LEASE]
    told = "output.url=/proc/nothing/out: cannot be written: "
    assert_told(train_tokenizer.main, [*given, "output.url=/proc/nothing/out"], told)


def test_a_checkpoint_of_an_earlier_version_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tokenizer_run, "start_ray", lambda **_: pytest.fail("Ray was started"))
    (tmp_path / "out/checkpoints/step-0000020").mkdir(parents=True)
    told = f"{tmp_path}/out/checkpoints/step-0000020: a checkpoint of an earlier version.* remove {tmp_path}/out/check"
    assert_told(train_tokenizer.main, [*arguments, f"output.url={tmp_path}/out"], told, code=3)


def test_a_training_that_is_done_is_not_done_otherwise(
    arguments: list[str], straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tokenizer_run, "start_ray", lambda **_: pytest.fail("Ray was started"))
    given = [*arguments, f"output.url={straight}"]
    told = r"50 steps are done.* training.learning_rate=0.001 \(0.003 before\)"
    assert_told(train_tokenizer.main, [*given, "training.learning_rate=1e-3"], told, code=3)
    changed = [
        "model.num_globals=3",
        "training.joint_steps=40",
        "training.ema_decay=0",
        "training.loss.rate=0.1",
    ]
    told = (
        r"model.num_globals=2 \(now 3\), training.joint_steps=30 \(now 40\), training.ema_decay=0.9 \(now 0.0\), "
        r"training.loss.rate=0.0 \(now 0.1\)"
    )
    assert_told(train_tokenizer.main, [*given, *changed], told)


def test_training_on_the_held_out_shards_is_refused(arguments: list[str], tmp_path: Path) -> None:
    same = arguments[1].split("=")[1]
    given = [*arguments, f"validation.shards={same}", f"output.url={tmp_path}/out"]
    assert_told(train_tokenizer.main, given, "in validation.shards")
