"""Decoded images in, token rows out: the model on its device, and nothing of shards or storage.

Letters: B images a batch, S image size, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tatok_pipe.records import DecodedImage, TokenRecord
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.trainer import to_model_input


class BatchEncoder:
    """Encodes, measures and filters up to `batch_size` images at a time. Thread-safe."""

    def __init__(
        self,
        model: TaTok,
        filter: Filter,
        *,
        device: torch.device,
        precision: str,
        batch_size: int,
        mutual_information: bool,
        patch_entropy: bool,
        scores: bool = False,
    ) -> None:
        """`scores` records what losing each patch costs, and decides on that; it takes the entropies with it."""
        self.model = model
        self.filter = filter
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.mutual_information = mutual_information
        self.patch_entropy = patch_entropy or scores
        self.scores = scores

    def __call__(self, images: Sequence[DecodedImage]) -> list[TokenRecord]:
        """The rows of the images, in order. Raises RuntimeError where the model gives entropies that are no
        numbers."""
        if not images:
            return []
        size = self.model.config.image_size
        # Always the full batch: kernels differ by shape, and an image's codes should not depend on its neighbours.
        pixels = np.zeros((self.batch_size, size, size, 3), np.uint8)
        for row, image in enumerate(images):
            pixels[row] = image.pixels
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            tokens = self.model.tokenize(
                to_model_input(pixels, self.device),
                self.filter,
                with_mutual_information=self.mutual_information,
                rounds_costs=self.scores,
            )
        global_codes = tokens.global_codes.cpu().numpy()  # (B, K)
        patch_codes = tokens.patch_codes.cpu().numpy()  # (B, N)
        keep = tokens.keep.cpu().numpy()  # (B, N)
        cost = tokens.cost.cpu().numpy() if self.scores else None  # (B, N) float16
        entropy = tokens.patch_entropy.cpu().numpy()  # (B, N)
        information = None if tokens.mutual_information is None else tokens.mutual_information.cpu().numpy()
        if not np.isfinite(entropy[: len(images)]).all():
            raise RuntimeError(
                "the entropy model gave values that are not finite; check the checkpoint's weights"
            )
        exact = entropy.astype(np.float64)
        records = []
        for row, image in enumerate(images):
            kept = keep[row]
            records.append(
                TokenRecord(
                    key=image.key,
                    label=image.label,
                    caption=image.caption,
                    meta=image.meta,
                    width=image.width,
                    height=image.height,
                    crop=image.crop,
                    global_codes=global_codes[row],
                    patch_codes=patch_codes[row, kept],
                    patch_positions=np.flatnonzero(kept),
                    entropy_total=float(exact[row].sum()),
                    entropy_dropped=float(exact[row, ~kept].sum()),
                    mutual_information=None if information is None else float(information[row]),
                    patch_entropy=entropy[row].astype(np.float32) if self.patch_entropy else None,
                    patch_score=None if cost is None else cost[row],
                )
            )
        return records
