"""What a part of the study's own is made with: where its inputs lie, and the models that it needs. Knows no Ray.

Letters: B images, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.ar.generation.exports import encode_image
from tatok_pipe.ar.requests import ImageTokens
from tatok_pipe.commands.study.design import Part
from tatok_pipe.commands.study.results import Result, need_result, part_folder, tokenizer_url
from tatok_pipe.config.load import from_dict
from tatok_pipe.evaluation.classifier import Classifier, load_classifier
from tatok_pipe.evaluation.features import FeatureNetwork
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.nn.prepacked import prepack
from tatok_pipe.records import TokenRecord
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokens.dataset import records_to_tensors

PICTURES = "pictures"
BATCH_IMAGES = 16  # decoded and looked at together: always the same neighbours


class Networks:
    """Those that images are looked at with, loaded once."""

    def __init__(self, url: str, device: torch.device) -> None:
        self._url = url
        self._device = device
        self._pretrained: dict[str, FeatureNetwork] = {}
        self._classifiers: dict[str, Classifier] = {}

    def pretrained(self, settings: dict[str, Any]) -> FeatureNetwork:
        key = str(settings)
        if key not in self._pretrained:
            self._pretrained[key] = FeatureNetwork(from_dict(FeaturesConfig, settings), self._device)
        return self._pretrained[key]

    def classifier(self, part_id: str) -> Classifier:
        if part_id not in self._classifiers:
            folder = part_folder(self._url, part_id)
            self._classifiers[part_id] = load_classifier(folder, device=self._device)
        return self._classifiers[part_id]


@dataclass
class Workshop:
    """For one part. `touch` is a sign of life, with the images that are done since."""

    part: Part
    url: str  # of the study
    device: torch.device
    networks: Networks
    train: tuple[ShardFile, ...]
    test: tuple[ShardFile, ...]
    touch: Callable[[int], None]

    @property
    def settings(self) -> dict[str, Any]:
        return self.part.settings

    @property
    def folder(self) -> str:
        """Where the part's own files go."""
        return part_folder(self.url, self.part.id)

    def input(self, role: str) -> str:
        """The folder of an input."""
        return part_folder(self.url, self.part.inputs[role])

    def input_result(self, role: str) -> Result:
        return need_result(self.url, self.part.inputs[role])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        url = tokenizer_url(self.url, self.part.inputs["tokenizer"])
        tokenizer = load_tokenizer(url, device=self.device)
        if self.device.type == "cpu":
            prepack(tokenizer.model)
        return tokenizer

    def decode(self, tokens: Sequence[ImageTokens | TokenRecord]) -> Iterator[Tensor]:
        """Images (B, 3, S, S) as files of 8 bits have them."""
        model = self.tokenizer.model
        num_globals, num_patches = model.config.num_globals, model.config.num_patches
        for start in range(0, len(tokens), BATCH_IMAGES):
            batch = tokens[start : start + BATCH_IMAGES]
            tensors = records_to_tensors(batch, num_globals=num_globals, num_patches=num_patches)
            yield (model.decode(*(each.to(self.device) for each in tensors)) * 255).round() / 255

    def publish_picture(self, number: int, pixels: np.ndarray) -> None:
        """(S, S, 3) uint8, for the page."""
        url = storage.join(self.folder, PICTURES, f"{number:06d}.png")
        storage.publish_bytes(encode_image(pixels, "png"), url, exclusive=False)
