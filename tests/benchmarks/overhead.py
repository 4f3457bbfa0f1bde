"""What the whole job costs beside the work in it, on this machine's CPUs. Part of `make bench`.

Two comparisons, sides in turn, medians of several pairs; the job is the real command with real Ray actors, timed by
itself from the first shard begun to the last one committed:

- with a model that does nothing, against a loop of as many processes as there are CPUs that only read the tar and
  decode with Pillow;
- with the packaged tokenizer on the demo corpus, against the model alone on decoded tensors, a thread a CPU. Where
  the model runs on the CPUs that decode, the job can at best reach t_model / (t_model + t_decode) of it: that ceiling,
  measured in the same run on one core, stands in the next line.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.images.decode import PreprocessConfig, decode_image
from tatok_pipe.images.demo import held_out_crops, write_demo_corpus
from tatok_pipe.images.source import open_samples
from tatok_pipe.records import ImageSample
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig
from tatok_pipe.tokenizer.trainer import to_model_input

REPEATS = 3
BATCH = 16
NUM_CPUS = os.cpu_count() or 1


def make_pictures() -> list[bytes]:
    """JPEGs of the size that is usual in ImageNet, 500 x 375, from the demo's photographs and textures."""
    pictures = []
    for sample in held_out_crops(crops_per_source=8):
        image = (
            Image.open(io.BytesIO(sample.image)).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
        )
        out = io.BytesIO()
        image.save(out, "JPEG", quality=92)
        pictures.append(out.getvalue())
    return pictures


def write_shards(folder: Path, pictures: list[bytes], *, num_shards: int, copies: int) -> list[str]:
    folder.mkdir()
    shards = []
    for index in range(num_shards):
        path = folder / f"{index:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for copy in range(copies):
                for number, picture in enumerate(pictures):
                    info = tarfile.TarInfo(f"{copy:03d}-{number:05d}.jpg")
                    info.size = len(picture)
                    tar.addfile(info, io.BytesIO(picture))
        shards.append(str(path))
    return shards


def read_images(shards: list[str]) -> list[bytes]:
    images = []
    for shard in shards:
        with open_samples(shard, info=storage.file_info(shard)) as samples:
            images += [sample.image for sample in samples if isinstance(sample, ImageSample)]
    return images


def run_job(shards: list[str], *options: str, env: dict[str, str] | None = None) -> tuple[float, int]:
    """Images a second by the job's own clock, and rows written."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        command = [
            sys.executable,
            "-m",
            "tatok_pipe.tokenize_corpus",
            f"input.shards={Path(shards[0]).parent}",
        ]
        command += [f"output.url={output}", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | (env or {})
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        summary = json.loads((output / "_summary.json").read_text())
        return summary["run"]["images_per_s"], summary["statistics"]["num_images"]


def pillow_loop(shards: list[str], size: int, ready: Any, go: Any) -> None:
    """The bare loop: the same bytes, the same scaled decoding, the same resize, and nothing kept."""
    ready.release()
    go.wait()
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read()))
                width = image.width
                image.draft("RGB", (2 * size, 2 * size))
                scale = image.width / width
                image = image.convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                assert scale > 0
                np.asarray(
                    image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
                )


def run_pillow(shards: list[str], size: int, num_images: int) -> float:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    parts = [shards[index::NUM_CPUS] for index in range(NUM_CPUS)]
    processes = [context.Process(target=pillow_loop, args=(part, size, ready, go)) for part in parts]
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
        raise SystemExit("the Pillow loop failed")
    return num_images / seconds


def show(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [ours / other for ours, other in pairs]
    row = {
        "name": name,
        "ours": statistics.median(ours for ours, _ in pairs),
        "other": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }
    print(
        f"{name:>72} {row['ours']:9.1f} {row['other']:9.1f} {row['ratio']:7.2f}",
        f" ({min(ratios):.2f} … {max(ratios):.2f})",
        flush=True,
    )
    return row


def main() -> int:
    torch.set_num_threads(1)
    tokenizer = load_tokenizer()
    size = tokenizer.model.config.image_size
    print(f"{'images/s':>72} {'job':>9} {'bare':>9} {'ratio':>7}  (min … max of {REPEATS})")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures()
        shards = write_shards(Path(folder, "many"), pictures, num_shards=4 * NUM_CPUS, copies=32)
        num_images = len(shards) * 32 * len(pictures)
        null = {"PYTHONPATH": str(Path(__file__).with_name("null_model"))}
        # Decoding is all there is to do, so every CPU gets a process of its own, as on the other side.
        options = ("actors.cpus=1", f"actors.max={NUM_CPUS}", f"actors.min={NUM_CPUS}")
        pairs = []
        for _ in range(REPEATS):
            ours, num_rows = run_job(shards, *options, env=null)
            if num_rows != num_images:
                raise SystemExit(f"{num_rows} rows of {num_images} images")
            pairs.append((ours, run_pillow(shards, size, num_images)))
        rows.append(show(f"whole job without a model / {NUM_CPUS} processes of bare Pillow", pairs))

        corpus = write_demo_corpus(Path(folder, "demo"), num_shards=NUM_CPUS, crops_per_source=96)
        encoded = read_images(corpus.shards)
        num_images = len(encoded)
        preprocess = PreprocessConfig(image_size=size)
        start = time.perf_counter()
        decoded = np.stack([decode_image(picture, preprocess)[0] for picture in encoded])
        decode_s = (time.perf_counter() - start) / num_images
        batches = list(to_model_input(decoded, "cpu").split(BATCH))
        filter = tokenizer.filter(DTFConfig())

        def one(batch: torch.Tensor) -> None:
            with torch.inference_mode():
                tokenizer.model.tokenize(batch, filter)

        pairs = []
        with ThreadPoolExecutor(NUM_CPUS) as lanes:
            list(lanes.map(one, batches[: 2 * NUM_CPUS]))
            for _ in range(REPEATS):
                ours, num_rows = run_job(corpus.shards)
                if num_rows != num_images:
                    raise SystemExit(f"{num_rows} rows of {num_images} images")
                start = time.perf_counter()
                list(lanes.map(one, batches))
                pairs.append((ours, num_images / (time.perf_counter() - start)))
        rows.append(show("whole job, packaged tokenizer / bare model on decoded tensors", pairs))
        model_s = NUM_CPUS / rows[-1]["other"]  # of one core, an image
        rows[-1]["ceiling"] = model_s / (model_s + decode_s)
        print(f"{'ceiling of that ratio, decoding on the same cores':>72} {rows[-1]['ceiling']:27.2f}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
