"""Parts that look at images: the classifier, the real images, and the likeness of drawn and decoded ones to them.

Letters: M images, B of a batch, S side in pixels, D features.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.ar.ragged_tokens import RaggedTokens
from tatok_pipe.ar.requests import ImageTokens
from tatok_pipe.commands.study.labels import check_label
from tatok_pipe.commands.study.of_generators import DRAWN
from tatok_pipe.commands.study.results import Result, interval_figures
from tatok_pipe.commands.study.workshop import BATCH_IMAGES, Workshop
from tatok_pipe.evaluation.classifier import save_classifier, train_classifier
from tatok_pipe.evaluation.metrics import frechet_distance, precision_recall
from tatok_pipe.evaluation.pictures import read_pictures, share_out, to_pixels
from tatok_pipe.evaluation.statistics import group_jackknife
from tatok_pipe.records import TokenRecord
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.dataset import TokenDataset

NUM_SHOWN = 16
_REAL = "features.npz"
_GROUPS = {"pretrained": 5, "classifier": 10}  # of the jackknife: distances of many features take seconds
_ALL = 1 << 40  # images, of shards that are read to their ends


def train(workshop: Workshop) -> Result:
    """The classifier."""
    pixels, labels = _read_labelled(workshop, workshop.train, "data.train", _ALL)
    model = train_classifier(
        pixels, labels, num_classes=workshop.settings["num_classes"], epochs=workshop.settings["epochs"],
        device=workshop.device, touch=workshop.touch,
    )  # fmt: skip
    save_classifier(workshop.folder, model)
    return Result({"num_images": len(labels)})


def look_at_real(workshop: Workshop) -> Result:
    """Features of the test images, and how far apart two halves of them are."""
    pixels, labels = _read_labelled(workshop, workshop.test, "data.test", workshop.settings["num_real"])
    found = _describe(workshop, _batches(pixels, workshop.device))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **found.vectors)
    storage.publish_bytes(file.getvalue(), storage.join(workshop.folder, _REAL), exclusive=False)
    halves = {name: frechet_distance(vectors[::2], vectors[1::2]) for name, vectors in found.vectors.items()}
    accuracy = float((found.guesses == labels).mean())
    return Result({"num_images": len(pixels), "distance_of_halves": halves, "accuracy": accuracy})


def compare_drawn(workshop: Workshop) -> Result:
    """The likeness of what was drawn to real images."""
    classes = workshop.input_result("tokens").figures["classes"]
    tokens = list(RaggedTokens.load(storage.join(workshop.input("tokens"), DRAWN)))
    labels = [classes[number % len(classes)] if classes else None for number in range(len(tokens))]
    return _compare(workshop, tokens, labels)


def compare_decoded(workshop: Workshop) -> Result:
    """The likeness of the test images to themselves through the tokens of an arm, which a perfect generator would
    reach: of as many as are drawn, from all over them."""
    rows = list(TokenDataset(workshop.input("tokens")).rows())
    chosen = (
        np.linspace(0, len(rows) - 1, min(len(rows), workshop.settings["num_images"])).round().astype(int)
    )
    tokens = [rows[place] for place in chosen]
    result = _compare(workshop, tokens, [row.label for row in tokens])
    return Result(result.figures | {"real_lengths": [row.num_tokens for row in rows]})


def _read_labelled(
    workshop: Workshop, shards: Sequence[ShardFile], option: str, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (M, S, S, 3) uint8 and labels (M,). Raises UserError where an image has none."""
    pictures, num_classes = [], workshop.settings["num_classes"]
    for source in share_out(shards, max_images=most):
        pictures += read_pictures(source, image_size=workshop.settings["image_size"])
        workshop.touch(0)
    for picture in pictures:
        check_label(picture, option=option, num_classes=num_classes)
    labels = np.array([picture.label for picture in pictures], np.int64)
    return np.stack([picture.pixels for picture in pictures]), labels


def _batches(pixels: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """(M, S, S, 3) uint8 as images (B, 3, S, S) in [0, 1]."""
    for start in range(0, len(pixels), BATCH_IMAGES):
        batch = torch.from_numpy(pixels[start : start + BATCH_IMAGES]).to(device)
        yield batch.permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class _Described:
    vectors: dict[str, np.ndarray]  # (M, D) by network
    guesses: np.ndarray  # (M,) int, classes by the classifier


def _describe(workshop: Workshop, batches: Iterator[Tensor]) -> _Described:
    """Images (B, 3, S, S) by both networks."""
    pretrained = workshop.networks.pretrained(workshop.settings["features"])
    classifier = workshop.networks.classifier(workshop.part.inputs["classifier"])
    vectors: dict[str, list[np.ndarray]] = {"pretrained": [], "classifier": []}
    guesses = []
    for images in batches:
        found = classifier.describe(images)
        vectors["pretrained"].append(pretrained(images).vectors)
        vectors["classifier"].append(found.vectors)
        guesses.append(found.logits.argmax(1))
        workshop.touch(len(images))
    return _Described(
        {name: np.concatenate(parts) for name, parts in vectors.items()}, np.concatenate(guesses)
    )


def _compare(
    workshop: Workshop, tokens: Sequence[ImageTokens | TokenRecord], labels: Sequence[int | None]
) -> Result:
    found = _describe(workshop, _showing(workshop, workshop.decode(tokens)))
    with np.load(io.BytesIO(storage.read_bytes(storage.join(workshop.input("real"), _REAL)))) as file:
        real = {name: file[name] for name in found.vectors}
    figures: dict[str, Any] = {"num_images": len(tokens), "lengths": [each.num_tokens for each in tokens]}
    for name, vectors in found.vectors.items():
        figures[f"distance_{name}"] = _distance(workshop, vectors, real[name], num_groups=_GROUPS[name])
    equal = min(len(tokens), len(real["pretrained"]))
    precision, recall = precision_recall(found.vectors["pretrained"][:equal], real["pretrained"][:equal])
    is_right = [guess == label for guess, label in zip(found.guesses, labels, strict=True)]
    return Result(figures | {"precision": precision, "recall": recall, "accuracy": float(np.mean(is_right))})


def _distance(workshop: Workshop, ours: np.ndarray, real: np.ndarray, *, num_groups: int) -> dict[str, float]:
    """The Fréchet distance with its interval."""

    def measure(places: np.ndarray) -> float:
        workshop.touch(0)
        return frechet_distance(ours[places], real)

    confidence = workshop.settings["confidence"]
    return interval_figures(group_jackknife(measure, len(ours), num_groups=num_groups, confidence=confidence))


def _showing(workshop: Workshop, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same images, and the first ones as files."""
    number = 0
    for images in batches:
        for image in images[: max(0, NUM_SHOWN - number)]:
            workshop.publish_picture(number, to_pixels(image))
            number += 1
        yield images
