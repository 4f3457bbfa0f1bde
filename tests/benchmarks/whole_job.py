"""What the whole job costs beside the work in it, on this machine's CPUs; what it holds in memory; how soon it works.

The job is the real command with real Ray actors, timed by itself from the first shard begun to the last one committed:

- with a model that does nothing, beside as many processes as there are CPUs that only read the tar and decode: as the
  job does, which says what the rest of the job costs, and with Pillow alone, as scripts do;
- with the packaged tokenizer on the demo corpus, beside the model alone on decoded tensors, a thread a CPU. Where the
  model runs on the CPUs that decode, the job can at best reach t_model / (t_model + t_decode) of it: a note says how
  much that is.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.trainer import to_model_input
from tests.benchmarks.measure import Results, from_pairs
from tests.benchmarks.peers.common import decode_as_ours, decode_scaled
from tests.benchmarks.pictures import make_pictures, read_images, write_shards

PAIRS = 3
_MODEL_PAIRS = 2  # of half a minute a side
_CROPS = 96  # of each picture of the demo corpus: what the job takes once, 0.4 s, does not count then
BATCH = 16
NUM_CPUS = os.cpu_count() or 1
NULL_MODEL = {"PYTHONPATH": str(Path(__file__).with_name("null_model"))}
# Decoding is all there is to do with it, so every CPU gets a process of its own, as other programs have it.
ONE_ACTOR_A_CPU = ("actors.cpus=1", f"actors.max={NUM_CPUS}", f"actors.min={NUM_CPUS}")
_MAX_ACTOR_BYTES = 3e9
Decode = Callable[[bytes, int], np.ndarray]  # bytes of an image and the side it is to have
_MAX_START_S = 15.0


@dataclass(frozen=True)
class JobRun:
    """One run of tokenize_corpus."""

    images_per_s: float  # by its own clock
    num_images: int
    start_s: float  # from the command to its first shard
    actor_bytes: int  # the largest resident memory of an actor


def run_job(shards: list[str], *options: str, env: dict[str, str] | None = None) -> JobRun:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = [
            sys.executable, "-m", "tatok_pipe.tokenize_corpus", f"input.shards={Path(shards[0]).parent}",
            f"output.url={output}", *options,
        ]  # fmt: skip
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (env or {}))
            watcher = _MemoryWatcher(process.pid)
            code = process.wait()
            wall_s = time.monotonic() - started
            watcher.stop()
            if code:
                log.seek(0)
                raise SystemExit(log.read())
        summary = json.loads((output / "_summary.json").read_text())
        run = summary["run"]
        return JobRun(
            images_per_s=run["images_per_s"],
            num_images=summary["statistics"]["num_images"],
            start_s=wall_s - run["seconds"],  # with what comes after the last shard: it counts against us
            actor_bytes=watcher.peak_bytes,
        )


class _MemoryWatcher:
    """The largest resident set of a Ray actor below a process."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            try:
                for child in psutil.Process(self._pid).children(recursive=True):
                    if child.name().startswith("ray::ShardActor"):
                        self.peak_bytes = max(self.peak_bytes, child.memory_info().rss)
            except psutil.Error:
                continue


def bare_loop(shards: list[str], size: int, decode: Decode, ready: Any, go: Any) -> None:
    """The same bytes to pixels of the same size, and nothing kept."""
    torch.set_num_threads(1)
    ready.release()
    go.wait()
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                decode(file.read(), size)


def run_bare(shards: list[str], size: int, num_images: int, *, decode: Decode) -> float:
    """Images a second of a process a CPU, from when all of them are up."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    parts = [shards[index::NUM_CPUS] for index in range(NUM_CPUS)]
    processes = [context.Process(target=bare_loop, args=(part, size, decode, ready, go)) for part in parts]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - start
    if any(process.exitcode for process in processes):
        raise SystemExit("the bare loop failed")
    return num_images / seconds


def run(results: Results) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure_without_model(results, Path(folder))
        runs = measure_with_model(results, Path(folder))
    start_s = statistics.median(each.start_s for each in runs)
    peak = max(each.actor_bytes for each in runs)
    results.limit("job/start", "start and end of the job, embedded Ray", start_s, _MAX_START_S, unit="s")
    results.limit("job/memory", "memory of an actor", peak / 1e9, _MAX_ACTOR_BYTES / 1e9, unit="GB")


def measure_without_model(results: Results, folder: Path) -> None:
    pictures = make_pictures()
    shards = write_shards(folder / "many", pictures, num_shards=4 * NUM_CPUS, copies=32)
    num_images = len(shards) * 32 * len(pictures)
    size = load_tokenizer().model.config.image_size
    sides: dict[str, Decode] = {"the same decoding": decode_as_ours, "Pillow": decode_scaled}
    rounds = []
    for _ in range(PAIRS):
        ours = run_job(shards, *ONE_ACTOR_A_CPU, env=NULL_MODEL)
        _check_rows(ours, num_images)
        speeds = [run_bare(shards, size, num_images, decode=decode) for decode in sides.values()]
        rounds.append([(ours.images_per_s, speed) for speed in speeds])
    for key, side, pairs in zip(("null", "pillow"), sides, zip(*rounds, strict=True), strict=True):
        name = f"whole job without a model / {NUM_CPUS} processes of bare loops, {side}"
        results.add(from_pairs(f"job/{key}", name, list(pairs), unit="images/s", target=0.85))


def measure_with_model(results: Results, folder: Path) -> list[JobRun]:
    tokenizer = load_tokenizer()
    corpus = write_demo_corpus(folder / "demo", num_shards=NUM_CPUS, crops_per_source=_CROPS)
    encoded = read_images(corpus.shards)
    preprocess = PreprocessConfig(image_size=tokenizer.model.config.image_size)
    start = time.perf_counter()
    decoded = np.stack([decode_image(picture, preprocess)[0] for picture in encoded])
    decode_s = (time.perf_counter() - start) / len(encoded)
    batches = list(to_model_input(decoded, "cpu").split(BATCH))
    filter = tokenizer.filter(DTFConfig())

    def one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            tokenizer.model.tokenize(batch, filter)

    pairs, runs = [], []
    with ThreadPoolExecutor(NUM_CPUS) as lanes:
        list(lanes.map(one, batches[: 2 * NUM_CPUS]))
        for _ in range(_MODEL_PAIRS):
            runs.append(run_job(corpus.shards))
            _check_rows(runs[-1], len(encoded))
            start = time.perf_counter()
            list(lanes.map(one, batches))
            pairs.append((runs[-1].images_per_s, len(encoded) / (time.perf_counter() - start)))
    name = "whole job, packaged tokenizer / bare model on decoded tensors"
    figure = results.add(from_pairs("job/model", name, pairs, unit="images/s", target=0.93))
    model_s = NUM_CPUS / figure.other  # of one core, an image
    results.note(f"the most that decoding on the same cores leaves: {model_s / (model_s + decode_s):.2f}")
    return runs


def _check_rows(run: JobRun, expected: int) -> None:
    if run.num_images != expected:
        raise SystemExit(f"{run.num_images} rows of {expected} images")
