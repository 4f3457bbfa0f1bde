"""Tokenizing as a script does it: LlamaGen's extraction of codes, with our model, beside our batches.

The script encodes a few images, waits for the codes, and writes one .npy file an image. Ours fills batches in two
threads, as the job does, and writes the rows of each as one file. Images are decoded already on both sides, and both
make the same rows; Parquet files, which the job writes, are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tatok_pipe.encoding.batch_encoder import BatchEncoder
from tatok_pipe.records import DecodedImage, TokenRecord
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.trainer import to_model_input
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.encode import LANES, build_tokenizer, half_of_the_patches
from tests.benchmarks.gpu.inputs import decoded_images, noise_pixels

_SPEED_UP = 3.0
_BATCHES = 4  # that are looked at together


class Script:
    """What one would write: encode, wait, save."""

    def __init__(self, model: TaTok, filter: Filter, *, device: Device, folder: Path) -> None:
        self._model = model
        self._filter = filter
        self._device = device
        self._folder = folder

    def run(self, images: Sequence[DecodedImage], *, batch: int) -> None:
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            pixels = np.stack([image.pixels for image in some])
            with torch.inference_mode(), self._device.autocast():
                tokens = self._model.tokenize(to_model_input(pixels, self._device.device), self._filter)
            global_codes = tokens.global_codes.cpu().numpy()
            patch_codes = np.where(tokens.keep.cpu().numpy(), tokens.patch_codes.cpu().numpy(), -1)
            for image, own_globals, own_patches in zip(some, global_codes, patch_codes, strict=True):
                codes = np.concatenate([own_globals, own_patches]).astype(np.int32)
                np.save(self._folder / f"{image.key}.npy", codes)


def run(bench: Bench) -> None:
    device, sizes = bench.device, bench.sizes
    model = build_tokenizer(sizes.tokenizer, device)
    pixels = noise_pixels(max(sizes.job_batch, sizes.script_images), sizes.tokenizer.image_size)
    images = decoded_images(pixels)
    some = to_model_input(pixels[: sizes.numerics_images], device.device)
    filter = half_of_the_patches(model, some, "drop_cost")
    encoder = BatchEncoder(
        model, filter, device=device.device, precision="bf16", batch_size=sizes.job_batch, mutual_information=False,
        patch_entropy=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tatok-gpu-") as name, ThreadPoolExecutor(LANES) as pool:
        folder = Path(name)
        script = Script(model, filter, device=device, folder=folder)

        def encode(number: int) -> None:
            _write(encoder(images[: sizes.job_batch]), folder / f"batch-{number}.npz")

        ours = bench.side(_BATCHES * sizes.job_batch, lambda: list(pool.map(encode, range(_BATCHES))))
        for batch in sizes.script_batches:
            own = images[: sizes.script_images]
            other = bench.side(len(own), lambda own=own, batch=batch: script.run(own, batch=batch))
            bench.compare(
                f"script/batch_{batch}", f"tokenized and written, decoded before / a script, {batch} at once",
                ours, other, unit="images/s", target=_SPEED_UP,
            )  # fmt: skip
            few = images[: _BATCHES * batch]
            bench.busy(f"script, {batch} at once", lambda few=few, batch=batch: script.run(few, batch=batch))
    bench.note("script: decoding is in neither side; ours writes a file a batch, and no Parquet")


def _write(records: list[TokenRecord], path: Path) -> None:
    np.savez(
        path,
        global_codes=np.stack([record.global_codes for record in records]),
        patch_codes=np.concatenate([record.patch_codes for record in records]),
        patch_positions=np.concatenate([record.patch_positions for record in records]),
        num_tokens=np.array([record.num_tokens for record in records]),
        entropy_total=np.array([record.entropy_total for record in records]),
    )
