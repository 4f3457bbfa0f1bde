"""Made-up images, token sequences and requests of the shapes that real ones have.

Letters: B images, S image size, K globals, N patch places.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.requests import Place
from tatok_pipe.records import DecodedImage, PackedBatch
from tatok_pipe.tokens.loading.batches import PackedRows, Sequences, empty_rows, join
from tatok_pipe.tokens.loading.packing import pack

# Standard deviation of the kept patches of an image over their mean: 64 of 91 in the demo corpus.
_SPREAD = 0.7
_SMOOTH_SIDE = 4  # cells of the grid that smooth images are drawn on


def noise_pixels(count: int, size: int) -> np.ndarray:
    """(B, S, S, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def smooth_pixels(count: int, size: int) -> np.ndarray:
    """(B, S, S, 3) uint8 without edges: a coarse grid of random colours, scaled up."""
    coarse = torch.rand(count, 3, _SMOOTH_SIDE, _SMOOTH_SIDE, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def decoded_images(pixels: np.ndarray) -> list[DecodedImage]:
    size = pixels.shape[1]
    return [
        DecodedImage(
            f"{number:06d}", label=0, caption=None, meta=None, num_bytes=0, pixels=each, width=size, height=size
        )
        for number, each in enumerate(pixels)
    ]  # fmt: skip


def draw_num_patches(count: int, vocabulary: Vocabulary, *, mean_tokens: float) -> np.ndarray:
    """(count,) int64, how many patches images keep, at least 1: a beta distribution over the places, as many kept on
    average as leave `mean_tokens` with the globals, spread as real ones are."""
    mean = (mean_tokens - vocabulary.num_globals) / vocabulary.num_patches
    concentration = (1 - mean) / (mean * _SPREAD**2) - 1
    shares = np.random.default_rng(1).beta(mean * concentration, (1 - mean) * concentration, count)
    return np.rint(shares * vocabulary.num_patches).astype(np.int64).clip(1, vocabulary.num_patches)


def draw_positions(num_patches: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Ascending positions of the patches of each image, end to end, int32."""
    random = np.random.default_rng(2)
    places = np.arange(vocabulary.num_patches, dtype=np.int32)
    return np.concatenate([np.sort(random.choice(places, count, replace=False)) for count in num_patches])


def draw_sequences(count: int, vocabulary: Vocabulary, *, mean_tokens: float, num_classes: int) -> Sequences:
    random = np.random.default_rng(3)
    num_patches = draw_num_patches(count, vocabulary, mean_tokens=mean_tokens)
    return Sequences(
        numbers=np.arange(count),
        global_codes=random.integers(0, vocabulary.global_vocab, (count, vocabulary.num_globals), np.int32),
        num_patches=num_patches,
        patch_codes=random.integers(0, vocabulary.patch_vocab, num_patches.sum(), np.int32),
        patch_positions=draw_positions(num_patches, vocabulary),
        labels=random.integers(0, num_classes, count, np.int32),
        is_conditional=np.ones(count, np.bool_),
        has_budget=np.zeros(count, np.bool_),
        embeddings=None,
    )


def packed_batches(
    sequences: Sequences, *, row_tokens: int, rows: int, max_rows: int | None = None
) -> list[PackedBatch]:
    """The sequences in batches of `rows` rows; of `max_rows` only the first rows, else all, with empty rows in the
    last batch."""
    packing = pack(sequences.lengths, row_tokens=row_tokens, random=np.random.default_rng(4))
    num_rows = packing.num_rows if max_rows is None else min(max_rows, packing.num_rows)
    packed = PackedRows(sequences, packing, np.arange(num_rows))
    batches = [packed.cut(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]
    if missing := rows - batches[-1].num_rows:
        batches[-1] = join([batches[-1], empty_rows(missing, row_tokens=row_tokens, embedding_size=None)])
    return batches


def requested_patches(count: int, vocabulary: Vocabulary, *, mean_tokens: float) -> list[np.ndarray]:
    """What is asked of a sampler so that its images have the number of patches that real ones have: (N,) each, as
    `ImageRequest.patches`."""
    num_patches = draw_num_patches(count, vocabulary, mean_tokens=mean_tokens)
    positions = np.split(draw_positions(num_patches, vocabulary), np.cumsum(num_patches)[:-1])
    requested = np.full((count, vocabulary.num_patches), int(Place.ABSENT))
    for row, own in zip(requested, positions, strict=True):
        row[own] = int(Place.DRAWN)
    return list(requested)
