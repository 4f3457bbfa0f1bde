"""One tokenizer on one set of images: what its tokens are worth, what they cost, and the statistics of that.

Letters: M images, N patches.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import find_image_shards
from tatok_pipe.evaluation.textbook import position_bits
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.source import open_samples
from tatok_pipe.records import ImageSample
from tatok_pipe.tokenizer.analysis import Analysis, analyse, decode, psnr
from tatok_pipe.tokenizer.checkpoint import Tokenizer
from tatok_pipe.tokenizer.perceptual import build_perceptual
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats
from tatok_pipe.tokenizer.scores.table import SCORES

TIMED_IMAGES = 16


def read_samples(shards: str) -> list[ImageSample]:
    found = []
    for shard in find_image_shards(shards, option="--shards"):
        with open_samples(shard.url, info=storage.file_info(shard.url)) as samples:
            found += [sample for sample in samples if isinstance(sample, ImageSample)]
    return found


def to_images(pixels: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


class Measured:
    """One tokenizer on one set of images, all patches of which were analysed."""

    def __init__(
        self, tokenizer: Tokenizer, samples: list[ImageSample], groups: list[str] | None = None
    ) -> None:
        self.model = tokenizer.model
        self.tokenizer = tokenizer
        self.samples = samples
        self.groups = groups
        self.preprocess = PreprocessConfig(image_size=self.model.config.image_size)
        self.images = to_images([decode_image(sample.image, self.preprocess)[0] for sample in samples])
        self.found: Analysis = analyse(self.model, self.images)
        distance = build_perceptual("efficientnet_lite0", "cpu")
        assert distance is not None
        self.distance = distance
        self.num_patches = self.model.config.num_patches
        self.num_globals = self.model.config.num_globals

    def quality(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """PSNR and perceptual distance of every image, (M,) each."""
        decoded = decode(self.model, self.found, keep)
        parts = zip(decoded.split(16), self.images.split(16), strict=True)
        with torch.no_grad():
            return psnr(decoded, self.images), torch.cat([self.distance(a, b) for a, b in parts])

    def bits(self, num_kept: Tensor) -> Tensor:
        """Of images with so many kept patches, (M,) to (M,), codes of fixed length."""
        fixed = self.num_globals * math.log2(self.model.global_quantizer.vocab_size)
        each = math.log2(self.model.patch_quantizer.vocab_size)
        return fixed + num_kept.double() * each + position_bits(num_kept, self.num_patches)

    def prices(self) -> dict[str, str]:
        """Time of encoding with each score, over encoder and quantizers alone; measured in turn."""
        batch = self.images[:TIMED_IMAGES]
        model = self.model

        def encode_only() -> None:
            model.encode(batch)

        def with_score(name: str) -> Callable[[], None]:
            def run() -> None:
                model.cost(name, batch, model.encode(batch))

            return run

        runs = {"": encode_only} | {name: with_score(name) for name in SCORES}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        with torch.no_grad():
            for _ in range(6):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    seconds[name].append(time.perf_counter() - start)
        base = np.median(seconds[""][1:])
        return {name: f"{np.median(seconds[name][1:]) / base:.2f} ×" for name in SCORES}

    def code_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.found.global_codes.split(16), self.found.patch_codes.split(16), strict=True)

    @torch.no_grad()
    def without_globals(self, global_codes: Tensor, patch_codes: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy and surprisal of patch codes (B, N) that the entropy model predicts without globals, nats."""
        hidden = torch.ones(len(patch_codes), dtype=torch.bool)
        logits = self.model.predict(global_codes, patch_codes, without_globals=hidden).patch_logits
        return entropy_nats(logits), surprisal_nats(logits, patch_codes)


def pooled(values: Tensor) -> float:
    """PSNR of the mean squared error over all images, from the PSNR of each, dB."""
    return -10 * torch.log10((10 ** (-values.double() / 10)).mean()).item()


def worst_decile(values: Tensor) -> float:
    """Mean of the lowest tenth."""
    return values.sort().values[: max(1, len(values) // 10)].mean().item()


def log_choices(total: int, kept: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)


def jpeg_bytes(image: Tensor) -> int:
    """Size of an image (3, H, W) as a JPEG of quality 75."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return file.tell()
