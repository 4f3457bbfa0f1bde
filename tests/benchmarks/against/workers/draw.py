"""One side's drawing of images, one thread: a generator of the size `tiny`, with weights that are the same on both."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from serve import serve

from tatok_pipe.ar import model as models
from tatok_pipe.ar import sampler as samplers
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.requests import ImageRequest, Place

try:
    from tatok_pipe.ar.options import GeneratorConfig, SamplingConfig
except ImportError:  # once they stood beside what they are the options of
    GeneratorConfig, SamplingConfig = models.GeneratorConfig, samplers.SamplingConfig  # type: ignore[attr-defined]

# Of the packaged tokenizer, and the share of patches that it keeps of the demo's photographs.
VOCABULARY = Vocabulary(num_globals=16, num_patches=256, global_vocab=512, patch_vocab=2048)
_KEPT = 0.35
_PATTERNS = 32
_streams: dict[int, tuple[Any, Iterator[Any]]] = {}


def _model() -> Any:
    torch.manual_seed(0)
    return models.Generator(GeneratorConfig(width=256, depth=4, heads=4, num_classes=20), VOCABULARY).eval()


def _requests() -> Iterator[ImageRequest]:
    """The number and the places of patches are given, codes are drawn."""
    masks = np.random.default_rng(0).random((_PATTERNS, VOCABULARY.num_patches)) < _KEPT
    for number in itertools.count():
        patches = np.where(masks[number % _PATTERNS], int(Place.DRAWN), int(Place.ABSENT))
        yield ImageRequest(number, seed=number, label=number % 20, patches=patches)


def tokens(num_slots: int, num_images: int) -> list[list[int]]:
    """The codes of the first images, by their number."""
    sampler = samplers.Sampler(_model(), SamplingConfig(), num_slots=num_slots, dtype=torch.float32)
    drawn = list(sampler.sample(itertools.islice(_requests(), num_images)))
    drawn.sort(key=lambda image: image.number)
    return [[*map(int, image.global_codes), *map(int, image.patch_codes)] for image in drawn]


def elements_per_s(num_slots: int, seconds: float) -> float:
    """Tokens and conditions of images, when every slot is at work, by the processor time of this process."""
    if num_slots not in _streams:
        sampler = samplers.Sampler(_model(), SamplingConfig(), num_slots=num_slots, dtype=torch.float32)
        images = sampler.sample(_requests())
        for _ in range(num_slots):
            next(images)
        _streams[num_slots] = sampler, images
    sampler, images = _streams[num_slots]
    before, start = sampler.statistics.num_elements, time.process_time()
    while time.process_time() - start < seconds:
        next(images)
    return (sampler.statistics.num_elements - before) / (time.process_time() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(tokens, elements_per_s)
    _streams.clear()  # while torch is there
