"""How a generator of an arm is trained: as many images a step as in every other arm, in rows as long as that takes."""

from __future__ import annotations

import math

from tatok_pipe import storage
from tatok_pipe.tokens.loading.training_set import TrainingSet

_ROWS = 8  # of a step


def row_options(dataset: TrainingSet, *, images_per_step: int) -> list[str]:
    """Options of train_ar for steps of `images_per_step` images on average. An image more or less fits into a row, so
    arms of different lengths differ by the share that packing leaves empty."""
    mean_elements = dataset.num_elements / dataset.num_sequences
    longest = 1 + dataset.spec.num_globals + dataset.spec.num_patches  # what a loader asks of a row
    row_tokens = max(longest, math.ceil(images_per_step * mean_elements / _ROWS))
    rows = max(1, round(images_per_step * mean_elements / row_tokens))
    return [f"packing.row_tokens={row_tokens}", f"training.batch_tokens={rows * row_tokens}"]


def training_words(
    words: tuple[str, ...], *, tokens_url: str, dataset: TrainingSet, images_per_step: int
) -> list[str]:
    """What train_ar is told of an arm, but for steps and output."""
    rows = row_options(dataset, images_per_step=images_per_step)
    return [*words, f"input.url={storage.canonical_url(tokens_url)}", "validation.share=0", *rows]
