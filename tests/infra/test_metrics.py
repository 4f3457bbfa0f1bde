"""What Prometheus would scrape while jobs run, beside what the dashboards and the alerts ask for."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.infra.promql import ALERTS, DASHBOARDS, queried_metrics
from tests.infra.ray_head import RayHead
from tests.pictures import crop_members, small_tokenizer, write_shard
from tests.token_datasets import make_rows, write_token_dataset

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

NUM_SHARDS = 12  # and one that cannot be read
COPIES = 20

TOKENIZER = """
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
training: {start: random, batch_size: 8, joint_steps: 30, prior_steps: 10, decoder_steps: 10}
validation: {every_steps: 10, panel_images: 3}
logging: {every_steps: 5}
checkpoints: {every_steps: 10, keep: 2}
workers: {cpus: 1}
"""
GENERATOR = """
model: {width: 32, depth: 1, heads: 2, num_classes: 4}
packing: {row_tokens: 64}
training: {steps: 200, batch_tokens: 256}
validation: {share: 0.1, every_steps: 50}
checkpoints: {every_steps: 50}
logging: {every_steps: 10}
workers: {cpus: 1}
"""


@dataclass
class Scraped:
    """Everything that was seen of our metrics: the highest value of each sample, by metric and labels."""

    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    helps: dict[str, str] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.helps |= dict(re.findall(r"^# HELP (ray_tatok_\w+) (.*)$", text, re.MULTILINE))
        for name, labels, value in re.findall(r"^(ray_tatok_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            key = tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))
            self.samples[name][key] = max(self.samples[name].get(key, 0.0), float(value))

    def of(self, name: str, **labels: str) -> list[float]:
        """Values of a metric where these labels are."""
        return [value for key, value in self.samples[name].items() if labels.items() <= dict(key).items()]

    def values(self, name: str, label: str) -> set[str]:
        return {dict(key)[label] for key in self.samples[name]}


@contextmanager
def job(head: RayHead, entry: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"tatok_pipe.{entry}", *arguments],
        env={**head.env, "RAY_ADDRESS": head.gcs_address},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watch(head: RayHead, process: subprocess.Popen[str], scraped: Scraped) -> str:
    """Scrape until the job is over, and once more; its stderr."""
    deadline = time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < deadline
        with suppress(OSError):  # the node's exporter starts after the node
            scraped.add(head.metrics())
        time.sleep(0.25)
    time.sleep(1)
    scraped.add(head.metrics())  # a driver exports its counters when it leaves
    return process.communicate()[1]


@pytest.fixture(scope="module")
def scraped(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """Of the three jobs that the dashboards are about, one after the other."""
    folder = tmp_path_factory.mktemp("metrics")
    scraped = Scraped()
    members = crop_members(10)
    copies = [(f"{copy}-{name}", data) for copy in range(COPIES) for name, data in members]
    for shard in range(NUM_SHARDS):
        whole = write_shard(folder / f"{shard:06d}.tar", [*copies, ("bad.jpg", b"")])
    (folder / "torn.tar").write_bytes(Path(whole).read_bytes()[:20_000])
    checkpoint = small_tokenizer(folder / "tokenizer")
    with job(
        head, "tokenize_corpus", f"input.shards={folder}/*.tar", f"output.url={folder}/out",
        f"tokenizer.checkpoint={checkpoint}", "actors.cpus=1", "actors.max=1",
    ) as process:  # fmt: skip
        stderr = watch(head, process, scraped)
        assert process.returncode == 1 and "1 shards failed" in stderr, stderr
    write_token_dataset(f"{folder}/tokens", [make_rows(70), make_rows(50, first=70)])
    (folder / "generator.yaml").write_text(GENERATOR)
    (folder / "tokenizer.yaml").write_text(TOKENIZER)
    write_shard(folder / "held-out.tar", crop_members(4, first=12))
    for entry, arguments in (
        (
            "train_ar",
            (f"{folder}/generator.yaml", f"input.url={folder}/tokens", f"output.url={folder}/generator"),
        ),
        (
            "train_tokenizer",
            (
                f"{folder}/tokenizer.yaml",
                f"input.shards={folder}/000000.tar",
                f"validation.shards={folder}/held-out.tar",
                f"output.url={folder}/trained",
            ),  # fmt: skip
        ),
    ):
        with job(head, entry, *arguments) as process:
            stderr = watch(head, process, scraped)
            assert process.returncode == 0, stderr
    return scraped


@pytest.mark.parametrize("path", [*DASHBOARDS, ALERTS], ids=lambda path: path.name)
def test_everything_that_is_asked_for_is_exported(path: Path, scraped: Scraped) -> None:
    asked = queried_metrics(path)
    assert asked
    assert asked <= set(scraped.samples), f"nobody exports {asked - set(scraped.samples)}"


def test_everything_that_is_exported_is_shown(scraped: Scraped) -> None:
    shown = set().union(*(queried_metrics(path) for path in DASHBOARDS))
    assert set(scraped.samples) <= shown, f"no dashboard shows {set(scraped.samples) - shown}"


def test_names_have_units_and_no_label_grows_with_the_corpus(scraped: Scraped) -> None:
    for name, samples in scraped.samples.items():
        assert scraped.helps[name]
        assert not re.search(r"_(ms|percent|kb|mb|share|minutes)(_|$)", name), name
        for key in samples:
            labels = dict(key)
            assert labels["entry"] in ("tokenize_corpus", "train_ar", "train_tokenizer")
            assert not [value for value in labels.values() if ".tar" in value or "://" in value]
        ours = {label for key in samples for label, _ in key} & {"entry", "stage", "split", "term", "kept"}
        for label in ours:
            assert len(scraped.values(name, label)) <= 12


def test_counters_and_gauges_of_a_run(scraped: Scraped) -> None:
    entry = "tokenize_corpus"
    images = NUM_SHARDS * COPIES * 10

    def total(name: str, **labels: str) -> float:
        return sum(scraped.of(f"ray_tatok_{name}", entry=entry, **labels))

    bad = NUM_SHARDS  # one a shard
    done = NUM_SHARDS + 1
    assert (total("shards_total"), total("failed_shards_total")) == (done, 1)
    # Whole shards; and what there was of the torn one before it was found to be torn.
    assert images <= total("images_total") < images + COPIES * 10
    assert total("tokens_total") > total("images_total")
    assert bad <= total("quarantined_samples_total") <= bad + 1
    assert total("read_bytes_total") > total("written_bytes_total") > 0
    assert 0.1 < max(scraped.of("ray_tatok_device_busy_ratio", entry=entry)) <= 1
    assert scraped.values("ray_tatok_queue_depth", "stage") == {"decode", "encode"}
    assert 0 < total("shards_left") <= done
    assert total("actors") == total("actors_wanted") == 1
    assert 0 < total("eta_seconds") < 600


def test_gauges_of_trainings(scraped: Scraped) -> None:
    def one(name: str, entry: str, **labels: str) -> float:
        (value,) = scraped.of(f"ray_tatok_train_{name}", entry=entry, **labels)
        return value

    assert one("step", "train_ar") == one("steps", "train_ar") == one("checkpoint_step", "train_ar") == 200
    assert one("step", "train_tokenizer") == one("steps", "train_tokenizer") == 50
    assert one("checkpoint_step", "train_tokenizer") == 50
    for split in ("train", "held_out"):
        for term in ("total", "global", "position", "patch"):
            assert 0 < one("loss", "train_ar", split=split, term=term) < 10
    assert one("tokens_per_second", "train_ar") > 0 < one("images_per_second", "train_ar")
    assert one("images_per_second", "train_tokenizer") > 0
    assert 0 < one("mfu_ratio", "train_ar") < 1 and 0.3 < one("fill_ratio", "train_ar") <= 1
    assert 0 <= one("data_wait_ratio", "train_ar") < 1
    assert one("grad_norm", "train_ar") > 0 < one("learning_rate", "train_ar")
    assert {"all", "half", "quarter", "globals"} == scraped.values("ray_tatok_train_psnr_db", "kept")
