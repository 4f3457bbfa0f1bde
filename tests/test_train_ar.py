"""Generator training as users start it: a Ray Train job that is killed, stopped, damaged, and still comes to the same
weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from tatok_pipe import train_ar
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.commands.train_ar import run as train_ar_run
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.runs.lease import LEASE, hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.versions import record_version
from tests.entries import assert_told, error_lines
from tests.jobs import IN_A_HURRY, running, wait_for
from tests.token_datasets import TINY, make_rows, write_token_dataset
from tests.tokenizer.conftest import small_config

CONFIG = """
model: {width: 32, depth: 1, heads: 2, num_classes: 4}
packing: {row_tokens: 64}
training:
  steps: 200
  batch_tokens: 256
  microbatch_rows: 2
  schedule: {peak: 3.0e-3, warmup_steps: 4}
  optimizer: {ema_decay: 0.9}
validation: {share: 0.1, every_steps: 100}
checkpoints: {every_steps: 20, upload: sync, keep: 2}
logging: {every_steps: 10}
workers: {cpus: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("train-ar"), CONFIG)


def prepare(folder: Path, config: str) -> Path:
    """A config and a token dataset of 120 images, for `command`."""
    (folder / "config.yaml").write_text(config)
    write_token_dataset(str(folder / "tokens"), [make_rows(70), make_rows(50, first=70)])
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "tatok_pipe.train_ar", str(folder / "config.yaml"),
        f"input.url={folder / 'tokens'}", *arguments,
    ]  # fmt: skip


def run(
    folder: Path, *arguments: str, cwd: Path | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=cwd, env=os.environ | IN_A_HURRY, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """What a training becomes that nothing happens to. The output is relative: Ray's workers have another folder."""
    done = run(folder, "output.url=undisturbed", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "undisturbed"


def assert_same(found: str, expected: Path) -> None:
    ours, theirs = load_generator(found), load_generator(str(expected / "generator"))
    assert ours.training["curve"] == theirs.training["curve"]
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name


@pytest.mark.ray
def test_a_training_learns_and_leaves_what_it_promises(folder: Path, undisturbed: Path) -> None:
    generator = load_generator(str(undisturbed / "generator"))
    curve = generator.training["curve"]
    train = [point for point in curve if point["split"] == "train"]
    held_out = [point for point in curve if point["split"] == "held_out"]
    assert [point["step"] for point in train] == list(range(10, 201, 10))
    assert [point["step"] for point in held_out] == [100, 200]
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    # Of images that it never saw; later on it learns the few others by heart.
    assert held_out[0]["loss"] < 0.9 * train[0]["loss"]
    assert {"global_nats", "position_nats", "patch_nats", "bits_per_image"} < set(held_out[0])
    assert generator.tokens == TINY
    assert len(list((undisturbed / "checkpoints").glob("step-*"))) == 2  # checkpoints.keep
    assert list((undisturbed / "tensorboard").glob("events.*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_training_comes_to_the_same_weights(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = command(folder, f"output.url={tmp_path}/killed")
    log = tmp_path / "log"
    with running(arguments, log) as process:
        worker = int(wait_for(r"worker 0 of 1: process (\d+)", log, process)[1])
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob("killed/checkpoints/step-000000020-*/rank-0.json")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        os.kill(worker, signal.SIGKILL)  # it would go on until it notices that its driver is gone
        process.kill()
    time.sleep(3)  # the rest of Ray notices that
    assert not (tmp_path / "killed/generator").exists()
    done = run(folder, f"output.url={tmp_path}/killed")
    assert done.returncode == 0, done.stderr
    resumed = re.search(r"resumed at step (\d+)", done.stdout + done.stderr)
    assert resumed and 20 <= int(resumed[1]) < 200
    assert_same(f"{tmp_path}/killed/generator", undisturbed)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_a_killed_worker_of_two_is_back_within_30_seconds(folder: Path, s3_url: str, tmp_path: Path) -> None:
    arguments = command(folder, "workers.max=2", "workers.min=2", f"output.url={s3_url}/generator")
    log = tmp_path / "log"
    with running(arguments, log) as process:
        wait_for(r"step 50/200", log, process)
        victim = int(wait_for(r"worker 1 of 2: process (\d+)", log, process)[1])
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        resumed = wait_for(r"resumed at step (\d+)", log, process, timeout_s=60)
        outage_s = time.monotonic() - killed_s
        assert process.wait(timeout=150) == 0, log.read_text()
    assert 40 <= int(resumed[1]) < 200
    assert outage_s < 30
    print(f"outage {outage_s:.1f} s")
    curve = load_generator(f"{s3_url}/generator/generator").training["curve"]
    assert [point["step"] for point in curve if point["split"] == "train"] == list(range(10, 201, 10))


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_makes_a_checkpoint_of_the_very_step(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    arguments = command(folder, f"output.url={tmp_path}/out", "checkpoints.every_steps=1000")
    log = tmp_path / "log"
    with running(arguments, log) as process:
        wait_for(r"step 50/200", log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 4, log.read_text()
    step = int(wait_for(r"interrupted at step (\d+) of 200", log, process)[1])
    assert 50 <= step < 200
    done = run(folder, f"output.url={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {step}" in done.stdout + done.stderr
    assert_same(f"{tmp_path}/out/generator", undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_weights_and_biases_has_the_curve_across_a_stop(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="tatok_pipe[wandb] is not installed")
    from tests.wandb_files import read_config, read_history

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["logging.wandb_project=tests", f"output.url={tmp_path}/out", "training.steps=100"]
    log = tmp_path / "log"
    with running(command(folder, *words), log) as process:
        wait_for(r"step 50/100", log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 4, log.read_text()
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    before, after = sorted((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert before.name == after.name == f"run-{(tmp_path / 'out/wandb/run_id').read_text()}.wandb"
    assert max(read_history(before)) < min(read_history(after))
    told = read_history(before) | read_history(after)
    expected: dict[int, dict[str, float]] = {}
    for point in load_generator(f"{tmp_path}/out/generator").training["curve"]:
        step, split = point.pop("step"), point.pop("split")
        row = expected.setdefault(step, {})
        row |= {f"{split}/{name}": pytest.approx(value) for name, value in point.items()}
    found = {
        step: {name: value for name, value in row.items() if not name.startswith("speed/")}
        for step, row in told.items()
    }
    assert found == expected and list(found) == list(range(10, 101, 10))
    assert all(row["speed/step_s"] > 0 for row in told.values())
    assert read_config(after)["model"]["width"] == 32
    assert "wandb: " not in log.read_text() + done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with running(command(folder, f"output.url={out}"), tmp_path / "log") as process:
        wait_for(r"step 60/200", tmp_path / "log", process)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    newest, before = sorted((out / "checkpoints").glob("step-*"), reverse=True)
    shard = newest / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = run(folder, f"output.url={out}")
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert f"{newest.name}: __0_0.distcp is not what was written; going back to the one before" in told
    assert f"resumed at step {int(before.name.split('-')[1])} from {before.name}" in told
    assert_same(f"{out}/generator", undisturbed)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(train_ar_run, "start_ray", refuse)


@pytest.mark.usefixtures("no_ray")
def test_bad_labels_are_told_before_anything_is_begun(folder: Path, tmp_path: Path) -> None:
    given = command(folder, "model.num_classes=2", f"output.url={tmp_path}/out")[3:]
    assert_told(train_ar.main, given, r"label [23], expected 0 to 1")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_bad_label_met_in_training_is_one_line_and_not_tried_again(folder: Path, tmp_path: Path) -> None:
    good = make_rows(60)  # of all classes, so that nobody looks further before the training
    write_token_dataset(str(tmp_path / "tokens"), [good, *[[]] * 9, [replace(good[0], key="x", label=7)]])
    done = run(folder, f"input.url={tmp_path}/tokens", f"output.url={tmp_path}/out", "validation.share=0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "label 7, expected 0 to 3" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["packing.row_tokens=8"], r"packing.row_tokens=8: the longest sequence"),
        (["model.condition=embedding", "model.embedding_dim=8"], "input.condition_url"),
        (["training.precision=fp8"], "expected one of auto, fp32, bf16"),
        (["model.heads=5"], "heads=5"),
        (["seed=-1"], "seed=-1: expected 0 to 4294967295"),
        (["workers.min=3", "workers.max=2"], "max=2: expected at least min=3"),
        (["input.where=lable=3"], r"^input\.where=lable=3: no column lable; expected one of"),
        (["input.where=label=99"], r"^input\.where=label=99: is true of none of the"),
        (
            ["tokenizer=packaged"],
            r"tokenizer=packaged: has the fingerprint [0-9a-f]{12}, the tokens were made by 121212121212; give",
        ),
        (["tokenizer=/nowhere"], "tokenizer=/nowhere: expected a folder with tokenizer.json"),
    ],
)
def test_a_mistake_is_told(folder: Path, tmp_path: Path, changes: list[str], message: str) -> None:
    assert_told(train_ar.main, [*command(folder, f"output.url={tmp_path}/out", *changes)[3:]], message)


@pytest.mark.usefixtures("no_ray")
def test_nothing_is_begun_where_another_training_lives_or_nothing_can_be_written(
    folder: Path, tmp_path: Path
) -> None:
    given = command(folder)[3:]
    with hold_output(f"{tmp_path}/out", StopSignal()):
        told = rf"output.url={tmp_path}/out: a run that lives writes there, process {os.getpid()} on "
        assert_told(train_ar.main, [*given, f"output.url={tmp_path}/out"], told, code=3)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LEASE]
    told = "output.url=/proc/nothing/out: cannot be written: "
    assert_told(train_ar.main, [*given, "output.url=/proc/nothing/out"], told)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_rows_that_are_mostly_padding_are_told_before_ray_starts(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    ray.shutdown()  # another test's
    given = [*command(folder)[3:], "packing.row_tokens=1024", "training.batch_tokens=65536"]
    given += [f"workers.max={num_workers}", "validation.share=0", f"output.url={tmp_path}/out"]
    with hold_output(f"{tmp_path}/out", StopSignal()):  # refused where Ray would be started
        assert_told(train_ar.main, given, "a run that lives writes there", code=3)
    assert not ray.is_initialized()
    (told,) = [message for message in caplog.messages if "the rest is padding" in message]
    # An image is its condition, globals and kept patches; all fit into one step of 64 rows, of which each of three
    # workers has 22, the last ones empty: all are of whole microbatches of 2.
    rows = [*make_rows(70), *make_rows(50, first=70)]
    num_elements = sum(1 + len(row.global_codes) + len(row.patch_codes) for row in rows)
    share = 100 * num_elements / ({1: 64, 3: 66}[num_workers] * 1024)
    assert told.startswith(f"{share:.1f} % of a step's 64 rows is tokens, the rest is padding"), told
    fitting = re.findall(r"(?:packing|training)\.\w+=\d+", told)
    caplog.clear()
    with hold_output(f"{tmp_path}/out", StopSignal()):
        assert_told(train_ar.main, [*given, *fitting], "a run that lives writes there", code=3)
    assert len(fitting) == 3 and "padding" not in caplog.text


def test_a_mistake_is_one_line(folder: Path, tmp_path: Path) -> None:
    done = run(folder, f"output.url={tmp_path}/out", "input.url=/nowhere")
    assert done.returncode == 2, done.stderr
    assert "/nowhere: no _dataset.json there" in done.stderr and len(error_lines(done.stderr)) == 1


def test_an_empty_dataset_and_one_of_two_tokenizers_are_refused(folder: Path, tmp_path: Path) -> None:
    config = str(folder / "config.yaml")
    empty = tmp_path / "empty"
    write_token_dataset(str(empty), [])
    given = [config, f"output.url={tmp_path}/out"]
    assert_told(train_ar.main, [*given, f"input.url={empty}"], "there is nothing to train on")

    mixed = tmp_path / "mixed"
    write_token_dataset(str(mixed), [make_rows(5)])
    content: dict[str, Any] = json.loads((mixed / "_dataset.json").read_text())
    content["spec"]["tokenizer_fingerprint"] = "34" * 32
    (mixed / "_dataset.json").write_text(json.dumps(content))
    assert_told(train_ar.main, [*given, f"input.url={mixed}"], "tokenizer_fingerprint", code=3)


@pytest.mark.ray
def test_another_model_or_tokenizer_does_not_go_on_in_an_output(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    given = command(folder, f"output.url={undisturbed}", "model.width=64")[3:]
    assert_told(train_ar.main, given, r"model.width=32 \(now 64\)", code=3)
    # Done, so that nothing would be trained with what is other now.
    for change, told in (
        (
            "training.optimizer.ema_decay=0.5",
            r"200 steps are done.* training.optimizer.ema_decay=0.5 \(0.9 before\)",
        ),
        ("training.steps=150", r"training.steps=150 \(200 before\)"),
        ("drop_condition=0", r"drop_condition=0.0 \(0.1 before\)"),
    ):
        description = (undisturbed / "generator/generator.json").read_bytes()
        given = command(folder, f"output.url={undisturbed}", change)[3:]
        assert_told(train_ar.main, given, told, code=3)
        assert (undisturbed / "generator/generator.json").read_bytes() == description


@pytest.mark.ray
def test_codes_begin_as_the_codewords_of_their_tokenizer(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TaTok(small_config("vq"))
    tokenizer = f"{tmp_path}/tokenizer"
    fingerprint = save_tokenizer(tokenizer, model, ladders={}, training={})
    config = model.config
    spec = replace(
        TINY, tokenizer_fingerprint=fingerprint, num_globals=config.num_globals, num_patches=model.config.num_patches,
        global_vocab=config.global_codebook.vocab_size, patch_vocab=config.patch_codebook.vocab_size,
    )  # fmt: skip
    write_token_dataset(f"{tmp_path}/tokens", [make_rows(40, spec=spec)], spec=spec)
    given = [
        f"input.url={tmp_path}/tokens",
        f"output.url={tmp_path}/out",
        "training.steps=1",
        "validation.share=0",
    ]
    given += ["packing.row_tokens=128", "training.optimizer.ema_decay=0", "training.schedule.peak=1e-9"]
    done = run(folder, *given, f"tokenizer={tokenizer}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load_generator(f"{tmp_path}/out").model.patch_codes.weight
    codewords = model.patch_quantizer.codes_to_vectors(torch.arange(config.patch_codebook.vocab_size))
    far, expected = torch.cdist(rows, rows), torch.cdist(codewords, codewords)
    torch.testing.assert_close(far / far.max(), expected / expected.max(), rtol=0, atol=1e-3)
    told = r"codes began from codewords, and not at random, as with tokenizer=auto; give another output.url"
    assert_told(train_ar.main, command(folder, *given, "training.steps=2")[3:], told, code=3)


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_changed_on_the_way_is_written_down(folder: Path, tmp_path: Path) -> None:
    arguments = [f"output.url={tmp_path}/out", "checkpoints.every_steps=5"]
    first = run(folder, *arguments, "training.steps=5", "training.optimizer.ema_decay=0")
    assert first.returncode == 0, first.stderr
    done = run(folder, *arguments, "training.steps=8", "training.schedule.peak=1e-3")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 5" in done.stdout + done.stderr
    training = load_generator(f"{tmp_path}/out").training
    changes = {
        "training.optimizer.ema_decay": [0.0, 0.9],
        "training.schedule.peak": [0.003, 0.001],
        "training.steps": [5, 8],
    }
    assert training["changes"] == [{"step": 5, "settings": changes}]


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_keeps_to_the_version_that_it_was_begun_on(folder: Path, tmp_path: Path) -> None:
    url, shards = str(tmp_path / "tokens"), [make_rows(70), make_rows(50, first=70), make_rows(9, first=120)]
    arguments = [f"input.url={url}", f"output.url={tmp_path}/out", "checkpoints.every_steps=5"]
    versions, told = [], ""
    for number in (2, 3):
        write_token_dataset(url, shards[:number])
        versions.append(record_version(url, refresh_index(url, TINY), by="tokenize_corpus").to_json())
        done = run(folder, *arguments, f"training.steps={number + 3}")
        assert done.returncode == 0, done.stderr
        assert load_generator(f"{tmp_path}/out").training["dataset"] == versions[0]
        told = done.stderr
    assert "going on with version 1" in told and "what is there now is version 2" in told
    done = run(folder, *arguments, "training.steps=8", "input.on_dataset_change=restart_epoch")
    assert done.returncode == 0, done.stderr
    training = load_generator(f"{tmp_path}/out").training
    assert training["dataset"] == versions[1]
    assert training["changes"][-1]["settings"]["dataset"] == [each["digest"] for each in versions]


@pytest.mark.ray
@pytest.mark.slow
def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(folder: Path, tmp_path: Path) -> None:
    arguments = [f"output.url={tmp_path}/out", "training.steps=8", "checkpoints.every_steps=1"]
    broken = ["checkpoints.upload=async", "training.schedule.peak=1e30", "training.schedule.warmup_steps=0"]
    done = run(folder, *arguments, *broken)
    assert done.returncode == 2, done.stdout + done.stderr
    told = re.search(r"error: step (\d): .*not finite", done.stderr)
    assert told and "Traceback" not in done.stdout + done.stderr
    names = [path.name[:14] for path in (tmp_path / "out/checkpoints").glob("step-*")]
    assert f"step-{int(told[1]):09d}" in names
    assert not (tmp_path / "out/generator").exists()


def test_a_share_that_leaves_nothing_to_train_on_is_told(folder: Path, tmp_path: Path) -> None:
    changes = [f"output.url={tmp_path}/out", "validation.share=0.999999999"]
    assert_told(
        train_ar.main, command(folder, *changes)[3:], r"validation.share=1: holds out all of the 120 images"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_three_images_are_trained_on_with_a_word_about_what_is_missing(folder: Path, tmp_path: Path) -> None:
    write_token_dataset(
        str(tmp_path / "few"), [make_rows(3)]
    )  # of classes 3, 0 and 2; none of them is held out
    done = run(
        folder, f"input.url={tmp_path}/few", f"output.url={tmp_path}/out", "training.steps=3",
        "validation.share=0.01", "validation.every_steps=1",
        "packing.row_tokens=512", "training.batch_tokens=8192",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "none of the 3 images is held out" in done.stderr
    assert "model.num_classes=4: 1 have no image to be trained on (1)" in done.stderr
    assert re.search(
        r"0\.\d % of a step's 16 rows is tokens.*packing.row_tokens=\d\d training.batch_tokens=", done.stderr
    )
    text = (tmp_path / "out/generator/generator.json").read_text()
    training = json.loads(text, parse_constant=lambda name: pytest.fail(name))["training"]
    assert training["held_out"] is None and training["untrained_classes"] == [1]


def test_a_dry_run_starts_nothing(folder: Path, tmp_path: Path) -> None:
    done = run(folder, f"output.url={tmp_path}/out", "--dry-run")
    assert done.returncode == 0
    assert "120 images" in done.stderr and "200 steps of 4 rows of 64 tokens" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [(("a", "b", "c"), "", 3), ((), "", 1000), (("a", "b", "c"), "model.num_classes=7", 7)],
)
def test_the_dataset_says_how_many_classes_there_are(
    names: tuple[str, ...], given: str, expected: int
) -> None:
    config = load_config(TrainArConfig, [given] if given else [], prog="train_ar", description="")
    spec = replace(TINY, class_names=names)
    assert train_ar_run._settle_classes(config, spec).model.num_classes == expected
    config = load_config(TrainArConfig, ["model.condition=none"], prog="train_ar", description="")
    assert train_ar_run._settle_classes(config, spec).model.num_classes == 0
