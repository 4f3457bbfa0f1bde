"""The images that an evaluation looks at, cut to size, each with what is known of it.

Letters: S image size in pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.limits import DEFAULT_LIMITS, IMAGES_ONLY
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.shard_errors import InterleavedShard, UnusableShard
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample
from tatok_pipe.storage import ShardFile

logger = logging.getLogger(__name__)

_IMAGES_PER_PART = 8  # of a folder, whose files are sorted, so that images from all over it are looked at


@dataclass(frozen=True)
class Picture:
    """A centre crop. `kind` says what it shows, where its metadata have a "kind": photo, texture, text, ..."""

    key: str
    pixels: np.ndarray = field(repr=False)  # (S, S, 3) uint8
    kind: str = ""
    label: int | None = None
    text: str = ""  # what is written on it, where that is known


@dataclass(frozen=True)
class PictureSource:
    """The first `num_images` images of an image shard; which version of the shard, as its store tells."""

    url: str
    num_images: int
    size_bytes: int | None = None
    etag: str = ""


def plan_sources(
    spec: str, *, max_images: int, list_url: str | None = None, other_stores: bool = False
) -> list[PictureSource]:
    """Image shards (glob, braces, @list, folder) with the images to take of each: as many of every shard as equal
    shares of `max_images` allow, so that shards which hold one class each are all heard. A folder of loose
    images is one, and so is a manifest, where its list can be written to `list_url`."""
    place = None
    if list_url:
        place = ListPlace(list_url, images_per_part=_IMAGES_PER_PART, other_stores=other_stores)
    return share_out(find_image_shards(spec, option="data", place=place), max_images=max_images)


def share_out(shards: Sequence[ShardFile], *, max_images: int) -> list[PictureSource]:
    """The images to take of each shard: equal shares."""
    shards = shards[:max_images]
    share, rest = divmod(max_images, len(shards))
    return [
        PictureSource(shard.url, share + (place < rest), shard.size_bytes, shard.etag)
        for place, shard in enumerate(shards)
    ]


def read_pictures(source: PictureSource, *, image_size: int) -> list[Picture]:
    """The images of a source in order. Those that do not decode are left out, with a warning, and others of the shard
    take their place. Raises ShardError, OSError where the shard cannot be read."""
    return list(islice(_decodable(source, image_size), source.num_images))


def _decodable(source: PictureSource, image_size: int) -> Iterator[Picture]:
    config = PreprocessConfig(image_size=image_size)
    for sample in _samples(source):
        try:
            pixels, _, _ = decode_image(sample.image, config)
        except DecodeError as error:
            logger.warning("%s: %s left out: %s", storage.redact(source.url), sample.key, error)
            continue
        yield Picture(sample.key, pixels, kind=_kind(sample.meta), label=sample.label)


def _samples(source: PictureSource) -> Iterator[ImageSample]:
    """Only as far as somebody asks: a shard may hold much more than is wanted. Labels that are of no use, such as
    names of classes, are done without."""
    info = shard_info(source.url)
    given = 0
    regroup, limits = False, DEFAULT_LIMITS
    while True:
        try:
            with open_samples(source.url, info=info, limits=limits, regroup=regroup) as samples:
                for number, sample in enumerate(samples):
                    if number < given:
                        continue  # a second reading of a shard whose files are mixed
                    given += 1
                    if isinstance(sample, ImageSample):
                        yield sample
            return
        except InterleavedShard:
            if regroup:
                raise
            regroup = True
        except UnusableShard as error:
            if limits is IMAGES_ONLY:
                raise
            logger.warning("%s: no labels and no JSON: %s", storage.redact(source.url), error)
            limits = IMAGES_ONLY


def _kind(meta: str | None) -> str:
    try:
        told = json.loads(meta or "{}")
    except ValueError:
        return ""
    return str(told.get("kind", "")) if isinstance(told, dict) else ""


def to_images(pictures: Sequence[Picture], device: torch.device | str = "cpu") -> Tensor:
    """(M, 3, S, S) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return pixels.to(device).permute(0, 3, 1, 2).float() / 255


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, S, S) in [0, 1] to (S, S, 3) uint8."""
    return (image.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
