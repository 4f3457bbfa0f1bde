"""Some images of a corpus, in memory, to calibrate or to measure a tokenizer on."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.limits import IMAGES_ONLY
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample
from tatok_pipe.tokenizer.trainer import to_model_input


def load_panel(shards: list[str], image_size: int, max_images: int) -> Tensor:
    """The first readable images of every shard, as many of each as `max_images` in all ask for: centre crops
    (M, 3, S, S) float32 in [0, 1].

    Raises UserError where there is none, or a shard cannot be read.
    """
    crops: list[np.ndarray] = []
    preprocess = PreprocessConfig(image_size=image_size)
    per_shard = -(-max_images // len(shards))
    for url in shards:
        limit = min(max_images, len(crops) + per_shard)
        try:
            with open_samples(url, info=shard_info(url), limits=IMAGES_ONLY) as samples:
                for sample in samples:
                    if isinstance(sample, ImageSample):
                        with suppress(DecodeError):
                            crops.append(decode_image(sample.image, preprocess)[0])
                    if len(crops) == limit:
                        break
        except ShardError as error:
            raise UserError(str(error)) from error
        if len(crops) == max_images:
            break
    if not crops:
        raise UserError(f"{storage.redact(shards[0])} and {len(shards) - 1} more: no readable image")
    return to_model_input(np.stack(crops), "cpu")
