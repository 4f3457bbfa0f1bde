from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tatok_pipe.evaluation.textbook import enlarge, load_textbook
from tatok_pipe.images.demo import held_out_crops
from tests.benchmarks.textbook import fit
from tests.benchmarks.tokenizer.measured import to_images


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    crops = held_out_crops(crops_per_source=1)[:6]
    found = []
    for crop in crops:
        with Image.open(io.BytesIO(crop.image)) as image:
            found.append(np.asarray(image.convert("RGB").resize((128, 128))))
    return to_images(found)


def test_errors_are_those_of_a_plain_loop(images: torch.Tensor) -> None:
    textbook = load_textbook()
    found = textbook.errors(images[:2])
    colours, residuals = textbook.colours.numpy(), textbook.residuals.numpy()
    for place, image in enumerate(images[:2].numpy()):
        cells = image.reshape(3, 4, 32, 4, 32).mean((2, 4)).transpose(1, 2, 0)
        picked = np.array([[np.argmin(((colours - cell) ** 2).sum(1)) for cell in line] for line in cells])
        coarse = enlarge(torch.from_numpy(colours[picked])[None], 128)[0].numpy()
        for patch in (0, 17, 255):
            y, x = patch // 16 * 8, patch % 16 * 8
            target, base = image[:, y : y + 8, x : x + 8], coarse[:, y : y + 8, x : x + 8]
            code = np.argmin(((residuals - (target - base).reshape(-1)) ** 2).sum(1))
            filled = np.clip(base + residuals[code].reshape(3, 8, 8), 0, 1)
            without = ((base - target) ** 2).mean()
            assert found.coarse[place, patch].item() == pytest.approx(without, rel=1e-4)
            gain = without - ((filled - target) ** 2).mean()
            assert found.gain[place, patch].item() == pytest.approx(gain, rel=1e-3, abs=1e-6)


def test_bits_hold_codes_and_places_and_are_never_exceeded(images: torch.Tensor) -> None:
    textbook = load_textbook()
    assert (len(textbook.colours), len(textbook.residuals), textbook.patch_size) == (512, 2048, 8)
    told = textbook.bits(torch.tensor([0, 100, 256]), 256).tolist()
    assert told == pytest.approx([144, 144 + 1100 + math.log2(math.comb(256, 100)), 144 + 2816], abs=1e-3)
    errors = textbook.errors(images)
    last = -math.inf
    for mean_bits in (100.0, 144.0, 900.0, 1800.0, 2960.0, 1e6):
        found = textbook.quality_at(errors, mean_bits)
        assert found.bits.mean() <= max(144, mean_bits) + 1e-3
        if 144 < mean_bits < 2960:  # one patch more, of one of six images, is all that is missing
            assert mean_bits - found.bits.mean() < 22 / 6
        assert found.psnr.mean() >= last
        last = found.psnr.mean()


def test_one_threshold_keeps_what_lowers_the_error_most(images: torch.Tensor) -> None:
    textbook = load_textbook()
    errors = textbook.errors(images)
    found = textbook.quality_at(errors, 1500.0)
    counts = torch.arange(257)
    per_image = int(counts[textbook.bits(counts, 256) <= 1500].max())
    fixed = errors.gain.sort(dim=1, descending=True).values[:, :per_image].sum(1)
    assert (10 ** (-found.psnr / 10)).sum() < (errors.coarse.sum(1) - fixed).sum() / 256


def test_other_sizes_and_small_sets() -> None:
    assert load_textbook().fits(256) and not load_textbook().fits(100)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=random)
    small = fit(images, patch_size=4)
    assert (len(small.colours), len(small.residuals), small.patch_size) == (48, 192, 4)
    errors = small.errors(images)
    assert errors.gain.mean() > 0.5 * errors.coarse.mean()  # about as many codewords as there are patches
