"""One side's decoding, one thread."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from serve import serve

from tatok_pipe.images import decode

try:
    from tatok_pipe.images.options import PreprocessConfig
except ImportError:  # once it stood beside the decoding
    PreprocessConfig = decode.PreprocessConfig  # type: ignore[attr-defined]

_pictures: list[bytes] = []


def load(folder: str) -> int:
    """Take the pictures of a folder, in the order of their names."""
    _pictures[:] = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    return len(_pictures)


def pixels(size: int, path: str) -> list[str | None]:
    """Write (N, S, S, 3) uint8 of all pictures; of each, why it has none."""
    config = PreprocessConfig(image_size=size)
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (len(_pictures), size, size, 3))
    errors: list[str | None] = []
    for number, picture in enumerate(_pictures):
        try:
            out[number] = decode.decode_image(picture, config)[0]
            errors.append(None)
        except Exception as error:
            errors.append(getattr(error, "error", type(error).__name__))
    return errors


def images_per_s(size: int, numbers: list[int]) -> float:
    """Of these pictures, by the processor time of this process."""
    config = PreprocessConfig(image_size=size)
    start = time.process_time()
    for number in numbers:
        decode.decode_image(_pictures[number], config)
    return len(numbers) / (time.process_time() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    serve(load, pixels, images_per_s)
