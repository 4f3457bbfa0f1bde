"""The models as Python objects."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import ExifTags, Image

import tatok_pipe
from tatok_pipe.api import ImageGenerator, ImageTokenizer
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.checkpoint import save_generator
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, GeneratorConfig, SamplingConfig
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tests.generation.models import Models, save_models
from tests.token_datasets import make_rows, write_token_dataset


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
        assert packaged.encode(other, target_tokens=80) == tokens
    images = packaged.decode(tokens)
    assert images.shape == (3, 3, 128, 128) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    blue = images[0].mean((1, 2))
    assert blue[2] > blue[1] > blue[0]
    # Of the right size, as tensors and as arrays.
    pixels = (images * 255).round().to(torch.uint8)
    as_array = packaged.encode(pixels.movedim(1, -1).numpy(), target_tokens=80)
    assert packaged.encode(pixels.float() / 255, target_tokens=80) == as_array


@pytest.fixture(scope="module")
def quickstart(packaged: ImageTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what README and guide say that their Python needs; the generator has learned nothing."""
    folder, config = tmp_path_factory.mktemp("quickstart"), packaged.model.config
    spec = TokenSpec(
        num_globals=config.num_globals,
        num_patches=config.num_patches,
        global_vocab=config.global_codebook.vocab_size,
        patch_vocab=config.patch_codebook.vocab_size,
        image_size=config.image_size,
        patch_size=config.patch_size,
        tokenizer_fingerprint=packaged.fingerprint,
        dtf=FilterSpec("none", "gain", 0.0, 1),
    )
    write_token_dataset(str(folder / "tatok_out"), [make_rows(9, spec=spec)], spec=spec)
    small = GeneratorConfig(width=32, depth=1, heads=2, num_classes=20)
    weights = dict(Generator(small, Vocabulary.from_spec(spec)).state_dict())
    save_generator(str(folder / "tatok_generator/generator"), weights, config=small, tokens=spec, training={})
    Image.fromarray(skimage.data.astronaut()).save(folder / "a.jpg")
    Image.fromarray(skimage.data.chelsea()).save(folder / "b.png")
    return folder


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / page).read_text(), re.DOTALL)


def test_the_python_of_the_pages_runs_as_it_stands(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart)
    (dataset,), (models,) = python_blocks("README.md"), python_blocks("docs/guide.md")
    names: dict[str, Any] = {}
    exec(compile(dataset, "README.md", "exec"), names)
    assert names["images"].shape == (8, 3, 128, 128)
    names = {}
    exec(compile(models, "docs/guide.md", "exec"), names)
    tokens, upper = names["tokens"], names["upper"].ravel()
    assert len(tokens) == 2 and names["images"].shape == (16, 3, 128, 128) and len(names["drawn"]) == 16
    assert names["first"].shape == (1, 3, 128, 128) and names["variants"].shape == (8, 3, 128, 128)
    # Of each variant the upper half is that of the image it started from.
    for image in names["generator"].sample(8, start=tokens, keep=upper):
        start = tokens[image.number % 2]
        kept, given = upper[image.patch_positions], upper[start.patch_positions]
        assert given.any() and np.array_equal(image.patch_codes[kept], start.patch_codes[given])


def test_one_image_of_every_kind(
    packaged: ImageTokenizer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """What is cropped and scaled is the same as from a file without loss."""
    pictures[2].save(tmp_path / "p.png")
    path = tmp_path / "p.png"
    tokens = packaged.encode(path)
    array = np.array(pictures[2])
    kinds: list[Any] = [
        str(path), path.read_bytes(), bytearray(path.read_bytes()), pictures[2], Image.open(path), array, array[None],
        torch.from_numpy(array).movedim(-1, 0), torch.from_numpy(array).movedim(-1, 0)[None],
        np.concatenate([array, np.full_like(array[..., :1], 255)], axis=2), np.array([str(path)]), iter([path]),
        (path,),
    ]  # fmt: skip
    for kind in kinds:
        assert packaged.encode(kind) == tokens, type(kind)
    # Arrays of different sizes, grey ones beside coloured ones.
    several = packaged.encode([array[:150], array[:, :, 0], array[:, :, :1]])
    assert several[0:1] == packaged.encode(array[:150]) and several[0:1] != several[1:2]
    assert several[1:2] == several[2:3]
    # One channel is not scaled to the last bit as three of them are, so a code in hundreds may be another.
    grey, coloured = several[1], packaged.encode(np.repeat(array[:, :, :1], 3, axis=2))[0]
    shared, ours, theirs = np.intersect1d(grey.patch_positions, coloured.patch_positions, return_indices=True)
    assert len(shared) > 0.95 * len(grey.patch_positions)
    assert (grey.patch_codes[ours] == coloured.patch_codes[theirs]).mean() > 0.95


def test_an_open_image_is_as_its_file(packaged: ImageTokenizer, tmp_path: Path) -> None:
    """Where EXIF says how it is to be turned, which the pixels in memory do not show."""
    photograph = Image.fromarray(skimage.data.astronaut()).resize((128, 128))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert packaged.encode(image) == packaged.encode(photograph)


def test_parts_of_tokens(packaged: ImageTokenizer, pictures: list[Image.Image]) -> None:
    tokens = packaged.encode(pictures, target_tokens=80)
    images = packaged.decode(tokens)
    for part, numbers in (
        (tokens[1], [1]),
        (tokens[-1], [2]),
        (tokens[1:], [1, 2]),
        (tokens[::-1], [2, 1, 0]),
        (tokens[[2, 0]], [2, 0]),
        (tokens[np.array([True, False, True])], [0, 2]),
        ([image for image in tokens if image.number != 1], [0, 2]),
        (tokens[3:], []),
    ):
        # A batch of another size takes other kernels: the last bits of a float may differ.
        torch.testing.assert_close(packaged.decode(part), images[numbers], atol=1e-5, rtol=0)
    assert [len(tokens[:2]), tokens[1:].num_tokens.tolist()] == [2, tokens.num_tokens[1:].tolist()]
    shown = tokens.num_tokens
    assert repr(tokens) == (
        f"RaggedTokens(3 images, {shown.sum()} tokens, {shown.min()} to {shown.max()} each; tokenizer "
        f"{packaged.fingerprint[:12]})"
    )
    assert repr(tokens[:1]).startswith(f"RaggedTokens(1 image, {shown[0]} tokens; ")
    assert repr(tokens[0]).startswith(f"EncodedImage({shown[0]} tokens: 16 global, ")
    assert repr(tokens[:0]).startswith("RaggedTokens(0 images, 0 tokens; ")


def test_the_output_of_a_training_is_as_good_as_the_model_in_it(models: Models) -> None:
    folder = Path(models.tokenizer).parent
    assert tatok_pipe.load_tokenizer(folder).fingerprint == models.spec.tokenizer_fingerprint
    assert (
        tatok_pipe.load_generator(folder).fingerprint
        == tatok_pipe.load_generator(models.generator).fingerprint
    )
    for load in (tatok_pipe.load_tokenizer, tatok_pipe.load_generator):
        with pytest.raises(UserError, match=f"^url={folder}/nothing: expected a folder with .*output.url"):
            load(folder / "nothing")


def test_models_are_moved_and_shown(packaged: ImageTokenizer, generator: ImageGenerator) -> None:
    assert packaged.to("cpu") is packaged and generator.to(torch.device("cpu")) is generator
    assert repr(packaged).startswith("ImageTokenizer(128 px, 16 global and up to 256 patch tokens; ")
    assert repr(generator).startswith("ImageGenerator(64 x 2, condition: 10 classes; ")
    for device in ("cuda:99", "nonsense", "meta"):
        for move in (packaged.to, generator.to, lambda device: tatok_pipe.load_tokenizer(device=device)):
            with pytest.raises(UserError, match=f"^device={device}: .*; expected cpu, or cuda"):
                move(device)


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
    assert generator.sample(20, classes=[1, 4], seed=5, slots=3) == tokens
    first = generator.sample(7, classes=[1, 4], seed=5)
    assert all(np.array_equal(a.patch_codes, b.patch_codes) for a, b in zip(first, tokens, strict=False))
    assert generator.sample(20, classes=[1, 4], seed=6) != tokens
    guided = SamplingConfig(codes=DrawConfig(guidance=3.0))
    assert generator.sample(20, classes=[1, 4], seed=5, sampling=guided) != tokens
    assert generator.sample(20, seed=5) != tokens


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
        (
            lambda: generator.sample(1, start=tokens, keep=np.ones(5)),
            r"keep: has shape \(5,\), expected \(16,\) or",
        ),
        (lambda: packaged.decode(tokens), "tokens: of tokenizer .*, expected those of"),
        (
            lambda: packaged.encode(torch.zeros(1, 3, 64, 64)),
            r"expected .* float in \[0, 1\] of shape \(3, 128, 128\)",
        ),
        (lambda: packaged.encode([tmp_path / "broken.jpg"]), "broken.jpg: does not decode"),
        (lambda: packaged.encode(["/nowhere.png"]), "/nowhere.png: is not there"),
        (lambda: packaged.encode([], target_tokens=3, filter=DTFConfig()), "expected one of them"),
        (lambda: packaged.encode([], target_tokens=3), "target_tokens=3"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    other = packaged.encode([Image.new("RGB", (128, 128))])
    with pytest.raises(RefusedError, match="start: of tokenizer .*, expected those of"):
        generator.sample(1, start=other)
    assert len(packaged.encode([])) == 0 and packaged.decode(packaged.encode([])).shape == (0, 3, 128, 128)


def test_mistakes_in_what_is_encoded(packaged: ImageTokenizer, tmp_path: Path) -> None:
    square, none = np.zeros((128, 128, 3), np.float32), np.zeros((3, 128, 128), np.float32)
    for images, message in (
        (square, r"images\[0\]: float values of shape \(128, 128, 3\).*expected"),
        (none + 255, r"images\[0\]: values from 255 to 255, expected float in \[0, 1\]"),
        (none - 1, r"values from -1 to -1"),
        (none * np.nan, r"values from nan to nan"),
        ([none, none[None]], r"images\[1\]: float values of shape \(1, 3, 128, 128\)"),
        (np.zeros((9, 9, 2), np.uint8), r"array of shape \(9, 9, 2\), uint8"),
        (np.zeros((0, 9, 3), np.uint8), r"array of shape \(0, 9, 3\), uint8"),
        (np.zeros((9, 9, 3), np.int64), r"array of shape \(9, 9, 3\), int64"),
        (torch.zeros((9, 9, 3), dtype=torch.uint8), r"tensor of shape \(9, 9, 3\), torch.uint8"),
        (3, "images: int, expected a path"),
        ({"a.jpg": 1}, "images: dict, expected a path"),
        ([None], r"images\[0\]: NoneType, expected a path"),
        (tmp_path, "is a folder, expected an image"),
        ("", "is "),
        (b"", r"images\[0\]: does not decode"),
        (Image.new("F", (9, 9)), r"images\[0\]: PIL image of mode F: .*; give picture.convert"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            packaged.encode(images)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_mistakes_in_what_is_decoded(packaged: ImageTokenizer) -> None:
    tokens = packaged.encode(Image.new("RGB", (128, 128)), filter=DTFConfig(rule="none"))
    for change, message in (
        ({"patch_codes": tokens.patch_codes + 2048}, "image 0: patch_codes are 256 from"),
        ({"global_codes": tokens.global_codes + 512}, "image 0: global_codes are 16 from"),
        ({"global_codes": tokens.global_codes[:, 1:]}, "image 0: global_codes are 15 from"),
        ({"patch_positions": tokens.patch_positions + 1}, "image 0: patch_positions are 256 from 1 to 256"),
        ({"patch_positions": tokens.patch_positions[::-1]}, "patch_positions do not increase"),
        ({"patch_positions": tokens.patch_positions[1:]}, "255 positions of 256 patches"),
        ({"offsets": tokens.offsets[1:]}, "offsets do not divide 256 patches among 1 images"),
        ({"patch_codes": tokens.patch_codes * 1.0}, "patch_codes is float64"),
    ):
        with pytest.raises(UserError, match=message):
            packaged.decode(dataclasses.replace(tokens, **change))
    with pytest.raises(UserError, match="tokens: int, expected what encode or sample gives"):
        packaged.decode([3])  # type: ignore[list-item]


def test_mistakes_in_what_is_drawn(generator: ImageGenerator) -> None:
    start, keep = generator.sample(1), np.ones((4, 4), np.bool_)
    for arguments, message in (
        ({"keep": keep}, "expected start, their tokens"),
        ({"keep_globals": False}, "expected start, their tokens"),
        ({"start": start, "keep_globals": False}, "start: nothing of it is kept"),
        ({"start": start[:0]}, "start: has no image"),
        ({"start": start, "keep": keep * 2}, "keep: int64 with other values than 0 and 1"),
        ({"start": start, "keep": np.ones((2, 8), np.bool_)}, r"keep: has shape \(2, 8\)"),
        ({"classes": ["cat"]}, "classes: 'cat', expected numbers, .*: 0 to 9"),
        ({"classes": "cat"}, "'cat' is no class; .* numbers 0 to 9"),
        ({"classes": "5-12"}, "expected 0 to 9"),
        ({"classes": [1.5]}, "classes: 1.5, expected numbers"),
        ({"classes": []}, "classes: none are given"),
        ({"classes": [-1]}, "label -1: expected 0 to 9"),
        ({"classes": 1, "embeddings": np.ones((1, 4))}, "expected one of them"),
        ({"embeddings": np.ones((1, 4))}, "the generator's condition is class"),
        ({"embeddings": np.ones((0, 4))}, r"embeddings: of shape \(0, 4\), expected \(n, E\)"),
        ({"embeddings": [[1.0, float("nan")]]}, "embeddings: row 0 has numbers that are not finite"),
        ({"embeddings": [[1.0], [1.0, 2.0]]}, r"embeddings: .*; expected numbers of shape \(n, E\)"),
        ({"seed": -1}, "seed=-1"),
        ({"slots": 0}, "num_slots=0"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            generator.sample(1, **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_classes_of_every_kind(generator: ImageGenerator) -> None:
    drawn = generator.sample(4, classes=[1, 2])
    for classes in (np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), "1-2", iter((1, 2))):
        assert generator.sample(4, classes=classes) == drawn  # type: ignore[arg-type]
    assert generator.sample(1, classes=1) == drawn[:1]
    assert generator.sample(4, classes="none") == generator.sample(4)
    assert generator.sample(4, classes="all") == generator.sample(4, classes=range(10))


def test_what_was_never_trained_is_not_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = GeneratorConfig(width=32, depth=1, heads=2, num_classes=10, num_budgets=4)
    training = {"config": {"drop_condition": 0}, "untrained_classes": [0, 7]}
    generator = tatok_pipe.load_generator(save_models(tmp_path, config, training=training).generator)
    guided = SamplingConfig(codes=DrawConfig(guidance=2))
    for arguments, message in (
        ({"classes": 1, "sampling": guided}, "guidance: expected 1, .*drop_condition=0.1"),
        ({}, "classes: none are given, .*drop_condition=0.1, or give classes"),
        (
            {"classes": [1, 7]},
            "classes=1,7: no image of 7 was in the training; expected classes among 1-6,8-9$",
        ),
        ({"classes": "6-8"}, "classes=6-8: no image of 7 was"),
        ({"classes": [10]}, "label 10: "),
    ):
        with pytest.raises(UserError, match=message) as caught:
            generator.sample(1, **arguments)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
    caplog.clear()
    generator.sample(1, classes=1)
    assert ["target_tokens=null" in message for message in caplog.messages] == [True]
    drawn = generator.sample(8, classes="all")
    assert drawn == generator.sample(8, classes=[1, 2, 3, 4, 5, 6, 8, 9])


def test_embeddings_of_every_kind(tmp_path: Path) -> None:
    config = GeneratorConfig(width=32, depth=1, heads=2, condition="embedding", embedding_dim=4)
    generator = tatok_pipe.load_generator(save_models(tmp_path, config).generator)
    vectors = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    drawn = generator.sample(3, embeddings=vectors)
    for same in (vectors.astype(np.float64), vectors.tolist(), torch.from_numpy(vectors)):
        assert generator.sample(3, embeddings=same) == drawn  # type: ignore[arg-type]
    assert generator.sample(1, embeddings=vectors[0]) == drawn[:1] and generator.sample(3) != drawn
    for arguments, message in (
        ({"embeddings": vectors[:, :3]}, r"embedding of shape \(3,\): .* embedding_dim=4"),
        ({"classes": [1]}, "label 1: the generator's condition is embedding"),
        ({"classes": ["cat"]}, "'cat', expected numbers, .*: none, it has no classes"),
        ({"classes": "3"}, "classes=3: the generator's condition is embedding"),
    ):
        with pytest.raises(UserError, match=message):
            generator.sample(1, **arguments)  # type: ignore[arg-type]


def test_the_package_waits_for_torch_until_it_is_needed() -> None:
    looks = "'torch' in sys.modules"
    code = (
        f"import tatok_pipe, sys; assert set(tatok_pipe.__all__) <= set(dir(tatok_pipe)); assert not {looks}; "
        f"tatok_pipe.load_tokenizer; assert {looks}; from tatok_pipe import *; RaggedTokens, DTFConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        tatok_pipe.load_nothing  # noqa: B018
