"""The models as Python objects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import tatok_pipe
from tatok_pipe.api import ImageGenerator, ImageTokenizer, RaggedTokens
from tatok_pipe.ar.draws import DrawConfig
from tatok_pipe.ar.sampler import SamplingConfig
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.tokenizer.dtf import DTFConfig
from tests.generation.models import Models, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def generator(models: Models) -> ImageGenerator:
    return tatok_pipe.load_generator(models.generator)


@pytest.fixture(scope="module")
def packaged() -> ImageTokenizer:
    return tatok_pipe.load_tokenizer()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Plain, smooth, and a photograph, none of the tokenizer's size."""
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)[:, None, None].repeat(300, 1).repeat(3, 2)
    photograph = Image.fromarray(skimage.data.astronaut()).crop((100, 0, 400, 250))
    return [Image.new("RGB", (128, 160), (90, 120, 200)), Image.fromarray(ramp), photograph]


def test_images_of_any_kind_are_the_same_tokens(
    packaged: ImageTokenizer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    tokens = packaged.encode(pictures, target_tokens=80)
    assert len(tokens) == 3 and tokens.num_tokens.shape == (3,)
    assert tokens.num_tokens[0] < tokens.num_tokens[2]  # a plain image takes few, a busy one many
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for other in (paths, list(map(str, paths)), [path.read_bytes() for path in paths]):
        assert same(packaged.encode(other, target_tokens=80), tokens)
    images = packaged.decode(tokens)
    assert images.shape == (3, 3, 128, 128) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    blue = images[0].mean((1, 2))
    assert blue[2] > blue[1] > blue[0]
    # Of the right size, as tensors and as arrays.
    pixels = (images * 255).round().to(torch.uint8)
    as_array = packaged.encode(pixels.movedim(1, -1).numpy(), target_tokens=80)
    assert same(packaged.encode(pixels.float() / 255, target_tokens=80), as_array)


def same(ours: RaggedTokens, theirs: RaggedTokens) -> bool:
    names = ("global_codes", "patch_codes", "patch_positions", "offsets")
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in names)


def test_filters(packaged: ImageTokenizer, pictures: list[Image.Image]) -> None:
    every = packaged.encode(pictures, filter=DTFConfig(rule="none"))
    assert every.num_tokens.tolist() == [16 + 256] * 3
    few, many = (packaged.encode(pictures, target_tokens=tokens) for tokens in (40, 150))
    assert few.num_tokens.mean() < many.num_tokens.mean()
    one = every[1]
    assert one.number == 1 and one.num_tokens == 272 and [image.number for image in every] == [0, 1, 2]
    assert np.array_equal(every[-1].patch_codes, every[2].patch_codes)
    with pytest.raises(IndexError):
        every[3]


def test_samples_do_not_depend_on_what_is_drawn_beside_them(generator: ImageGenerator) -> None:
    tokens = generator.sample(20, classes=[1, 4], seed=5)
    assert same(generator.sample(20, classes=[1, 4], seed=5, slots=3), tokens)
    first = generator.sample(7, classes=[1, 4], seed=5)
    assert all(np.array_equal(a.patch_codes, b.patch_codes) for a, b in zip(first, tokens, strict=False))
    assert not same(generator.sample(20, classes=[1, 4], seed=6), tokens)
    guided = SamplingConfig(codes=DrawConfig(guidance=3.0))
    assert not same(generator.sample(20, classes=[1, 4], seed=5, sampling=guided), tokens)
    assert not same(generator.sample(20, seed=5), tokens)


def test_a_part_of_an_image_is_kept(models: Models, generator: ImageGenerator) -> None:
    start = generator.sample(3, classes=[1], sampling=SamplingConfig(), seed=1)
    keep = np.zeros((4, 4), np.bool_)
    keep[:, :2] = True
    drawn = generator.sample(9, classes=[1], seed=2, start=start, keep=keep)
    for image in drawn:
        original = start[image.number % 3]
        for other in (image, original):
            assert len(other.global_codes) == 3
        kept, of_original = (keep.ravel()[each.patch_positions] for each in (image, original))
        assert np.array_equal(image.patch_positions[kept], original.patch_positions[of_original])
        assert np.array_equal(image.patch_codes[kept], original.patch_codes[of_original])
        assert np.array_equal(image.global_codes, original.global_codes)
    rest = {tuple(image.patch_codes[~keep.ravel()[image.patch_positions]]) for image in drawn}
    assert len(rest) > 5  # and what is not kept is drawn anew
    anew = generator.sample(9, classes=[1], seed=2, start=start, keep=keep, keep_globals=False)
    assert any(not np.array_equal(a.global_codes, b.global_codes) for a, b in zip(anew, drawn, strict=True))


def test_mistakes_are_told(
    models: Models, generator: ImageGenerator, packaged: ImageTokenizer, tmp_path: Path
) -> None:
    tokens = generator.sample(2)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for call, message in (
        (lambda: generator.sample(0), "num_images=0"),
        (lambda: generator.sample(1, classes=[10]), "label 10: expected 0 to 9"),
        (lambda: generator.sample(1, target_tokens=9), "knows no budgets"),
        (lambda: generator.sample(1, start=tokens, keep=np.ones(5)), "keep: has 5 places, images have 16"),
        (lambda: packaged.decode(tokens), "tokens of tokenizer .*: this one is"),
        (lambda: packaged.encode(torch.zeros(1, 3, 64, 64)), r"expected \(B, 3, 128, 128\)"),
        (lambda: packaged.encode([tmp_path / "broken.jpg"]), "broken.jpg: does not decode"),
        (lambda: packaged.encode(["/nowhere.png"]), "/nowhere.png: is not there"),
        (lambda: packaged.encode([], target_tokens=3, filter=DTFConfig()), "expected one of them"),
        (lambda: packaged.encode([], target_tokens=3), "target_tokens=3"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    other = packaged.encode([Image.new("RGB", (128, 128))])
    with pytest.raises(RefusedError, match="start: tokens of tokenizer"):
        generator.sample(1, start=other)
    assert len(packaged.encode([])) == 0 and packaged.decode(packaged.encode([])).shape == (0, 3, 128, 128)


def test_the_package_waits_for_torch_until_it_is_needed() -> None:
    looks = "'torch' in sys.modules"
    code = f"import tatok_pipe, sys; assert not {looks}; tatok_pipe.load_tokenizer; assert {looks}"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        tatok_pipe.load_nothing  # noqa: B018
