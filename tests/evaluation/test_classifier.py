from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.classifier import load_classifier, save_classifier, train_classifier


def striped(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of two classes of equal colours: lines that lie, and lines that stand."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    lines = np.broadcast_to((np.arange(16) % 4 < 2)[:, None] * 160, (16, 16))
    pixels = np.stack([lines if label else lines.T for label in labels])[..., None].repeat(3, 3)
    return (pixels + random.integers(0, 90, pixels.shape)).astype(np.uint8), labels


def test_it_learns_what_it_is_shown_and_is_the_same_again(tmp_path: Path) -> None:
    pixels, labels = striped(256, seed=0)
    done = 0

    def touch(more: int) -> None:
        nonlocal done
        done += more

    model = train_classifier(pixels, labels, num_classes=2, epochs=4, touch=touch)
    assert done == 4 * 256
    unseen, truth = striped(100, seed=1)
    images = torch.from_numpy(unseen).permute(0, 3, 1, 2) / 255
    found = model.describe(images)
    assert (found.logits.argmax(1) == truth).mean() > 0.95
    assert found.vectors.shape == (100, 128) and found.vectors.dtype == np.float32
    again = train_classifier(pixels, labels, num_classes=2, epochs=4)
    np.testing.assert_array_equal(again.describe(images).logits, found.logits)
    other = train_classifier(pixels, 1 - labels, num_classes=2, epochs=4)
    assert (other.describe(images).logits.argmax(1) == truth).mean() < 0.05  # it is the labels that decide
    save_classifier(str(tmp_path), model)
    np.testing.assert_array_equal(load_classifier(str(tmp_path)).describe(images).logits, found.logits)


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder with classifier.json"):
        load_classifier(str(tmp_path))
