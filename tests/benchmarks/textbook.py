"""Make the codebooks of `tatok_pipe/evaluation/textbook.py`, by k-means on photographs: some minutes.

    python -m tests.benchmarks.textbook --shards GLOB [--patch-size 8] [--image-size 128] --write FOLDER

Letters: M images, S image size in pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from tatok_pipe.evaluation.textbook import Textbook, enlarge, mean_colours, nearest, patchify
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.options import PreprocessConfig
from tests.benchmarks.tokenizer.measured import read_samples, to_images

NUM_COLOURS, NUM_RESIDUALS = 512, 2048


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shards", required=True, help="image shards to make them of")
    parser.add_argument("--patch-size", type=int, default=8, help="side of a patch, pixels")
    parser.add_argument("--image-size", type=int, default=128, help="side of an image, pixels")
    parser.add_argument("--write", required=True, help="folder for codebooks.safetensors")
    options = parser.parse_args(argv)
    start = time.monotonic()
    config = PreprocessConfig(image_size=options.image_size)
    samples = read_samples(options.shards)
    textbook = fit(
        to_images([decode_image(sample.image, config)[0] for sample in samples]),
        patch_size=options.patch_size,
    )
    folder = Path(options.write)
    folder.mkdir(parents=True, exist_ok=True)
    half = {"colours": textbook.colours.half(), "residuals": textbook.residuals.half()}
    save_file(half, folder / "codebooks.safetensors")
    print(f"{len(samples)} images, {time.monotonic() - start:.0f} s")
    return 0


def fit(images: Tensor, *, patch_size: int, seed: int = 0) -> Textbook:
    """From images (M, 3, S, S) in [0, 1]. Codebooks are no larger than there are vectors for."""
    grid = mean_colours(images)
    colours = _kmeans(grid.flatten(0, 2), NUM_COLOURS, batch_size=4096, seed=seed)
    coarse = enlarge(colours[nearest(grid.flatten(0, 2), colours)].view_as(grid), images.shape[-1])
    missing = patchify(images - coarse, patch_size).flatten(0, 1)
    return Textbook(colours, _kmeans(missing, NUM_RESIDUALS, batch_size=8192, seed=seed))


def _kmeans(vectors: Tensor, num_codes: int, *, batch_size: int, seed: int) -> Tensor:
    found = MiniBatchKMeans(
        min(num_codes, len(vectors)), batch_size=batch_size, n_init="auto", random_state=seed
    ).fit(vectors.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
