"""Resizing: Pillow's pixels by another kernel, the same ones on every machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tatok_pipe.images.resize import resize_rgb

# (height, width) of the source, and the side that it becomes.
SHAPES = [
    ((375, 375), 256),
    ((257, 300), 256),
    ((999, 600), 64),
    ((90, 71), 224),
    ((1, 1), 8),
    ((2, 900), 31),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def digest_of_all() -> str:
    return hashlib.sha256(
        b"".join(resize_rgb(noise(*shape), side).tobytes() for shape, side in SHAPES)
    ).hexdigest()


@pytest.mark.parametrize(("shape", "side"), SHAPES)
def test_as_pillow_has_it(shape: tuple[int, int], side: int) -> None:
    pixels = noise(*shape)
    found = resize_rgb(pixels, side)
    assert found.shape == (side, side, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.25  # most where many pixels become one; of photographs half a percent


def test_nothing_to_scale() -> None:
    np.testing.assert_array_equal(resize_rgb(noise(40, 40), 40), noise(40, 40))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_the_same_pixels_whatever_the_processor_can(capability: str) -> None:
    program = "import tests.images.test_resize as t; print(t.digest_of_all())"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [digest_of_all()]
