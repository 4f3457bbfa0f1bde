"""What the benchmarks are about: the demo's photographs at the size that is usual in ImageNet, and how a script decodes
them."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.images.demo import SOURCES, held_out_crops, open_source
from tatok_pipe.images.source import open_samples
from tatok_pipe.records import ImageSample


def make_pictures() -> list[bytes]:
    """JPEGs of 500 x 375, from the demo's photographs and textures."""
    pictures = []
    for sample in held_out_crops(crops_per_source=8):
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        out = io.BytesIO()
        image.resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
        pictures.append(out.getvalue())
    return pictures


def make_photographs() -> list[bytes]:
    """The demo's ten photographs as JPEGs of at most 500 pixels a side, of the shapes that they have."""
    pictures = []
    for source in SOURCES:
        if source.kind == "photo":
            image = open_source(source).convert("RGB")
            image.thumbnail((500, 500), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            image.save(out, "JPEG", quality=92)
            pictures.append(out.getvalue())
    return pictures


def write_shards(folder: Path, pictures: list[bytes], *, num_shards: int, copies: int) -> list[str]:
    """WebDataset shards of `copies` times all pictures each."""
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


def decode_with_pillow(data: bytes, size: int, *, draft: bool) -> np.ndarray:
    """The centre square at (size, size, 3), uint8, as a script decodes it; `draft` lets libjpeg scale down first."""
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (2 * size, 2 * size))
    return _resize(image.convert("RGB"), size)


def decode_with_simplejpeg(data: bytes, size: int) -> np.ndarray:
    """The same by libjpeg-turbo's own wrapper, and Pillow for what it does not do. Raises ImportError without it."""
    simplejpeg: Any = importlib.import_module("simplejpeg")
    return _resize(
        Image.fromarray(simplejpeg.decode_jpeg(data, min_height=2 * size, min_width=2 * size)), size
    )


def _resize(image: Image.Image, size: int) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
