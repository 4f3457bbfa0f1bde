from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tatok_pipe.ar.generation.layout import IMAGE_FORMATS, GeneratedImage
from tatok_pipe.ar.generation.worker import encode_image
from tatok_pipe.report.samples import render_samples
from tatok_pipe.tokens.spec import TokenSpec
from tests.report.test_page import EVIL, Page
from tests.token_datasets import TINY

PATCHES = [[], [5], list(range(16)), [0, 3, 12, 15]]  # raster positions of each image's


def make_images(spec: TokenSpec = TINY, *, image_format: str = "png") -> list[GeneratedImage]:
    random = np.random.default_rng(0)
    size = spec.image_size
    return [
        GeneratedImage(
            number=1000 + index,
            seed=77,
            label=None if index == 1 else 40 + index,
            global_codes=[1, 2],
            patch_codes=[3] * len(positions),
            patch_positions=positions,
            image=encode_image(random.integers(0, 256, (size, size, 3)).astype(np.uint8), image_format),
        )
        for index, positions in enumerate(PATCHES)
    ]


def render(images: list[GeneratedImage], **changes: Any) -> str:
    options: dict[str, Any] = {
        "url": "s3://bucket/run/out",
        "spec": TINY,
        "image_format": "png",
        "num_images": 1234,
        "mean_tokens": 4.5,
        "std_tokens": 1.25,
        "generator_fingerprint": "0123456789abcdef",
        "settings": "codes: temperature 1; seed 7",
    }
    return render_samples(images, **(options | changes))


def test_the_page_asks_for_nothing_and_is_whole() -> None:
    text = render(make_images())
    page = Page(text)  # every element is closed
    for _, attributes in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert not page.all("script") and "url(" not in text and "@import" not in text
    policies = [each["content"] for each in page.all("meta") if each.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert len(page.all("img")) == 8 and all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-hidden") == "true" for svg in page.all("svg"))


def test_one_image_has_no_spread() -> None:
    assert "± 1.2" in render(make_images())
    text = render(make_images()[:1], num_images=1, std_tokens=None)
    assert "±" not in text and "tokens per image" in text


def test_nothing_given_becomes_markup() -> None:
    spec = replace(TINY, tokenizer_fingerprint="<b>'\"&" * 3)
    name = "<u>'\"&amp;"
    text = render(
        make_images(), url=f"s3://bucket/{EVIL}/{name}", spec=spec, generator_fingerprint="<i>\"'&<i>\"'&"
    )
    page = Page(text)
    assert not any(page.all(tag) for tag in ("script", "b", "i", "u"))
    assert f"s3://bucket/{EVIL}/{name}" in page.text and page.text.count(name) == 3  # title, heading, URL
    assert "fingerprint <b>'\"&<b>'\"" in page.text and "fingerprint <i>\"'&<i>" in page.text


def test_the_same_images_give_the_same_page() -> None:
    images = make_images()
    assert render(images) == render(make_images())
    assert render(images) != render(images[::-1])


def captions(text: str) -> list[str]:
    found = re.findall(r"<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL)
    return [Page(f"<p>{each}</p>").text.replace("\N{NO-BREAK SPACE}", " ") for each in found]


def test_each_image_says_its_class_and_tokens() -> None:
    images = make_images()
    found = captions(render(images))
    assert len(found) == 4
    for image, caption in zip(images, found, strict=True):
        assert f"00000{image.number}" in caption
        assert ("class" in caption) == (image.label is not None)
        assert image.label is None or f"class {image.label}" in caption
        assert re.search(rf"\b{image.num_tokens} tokens\b", caption)
    pages = [Page(render([image])) for image in images]
    for image, page in zip(images, pages, strict=True):
        assert any(
            f"{len(image.patch_positions)} of 16 patches" in (each.get("alt") or "")
            for each in page.all("img")
        )


def test_the_figures_are_those_of_the_whole_run() -> None:
    text = Page(render(make_images())).text.replace("\N{NO-BREAK SPACE}", " ")
    for told in ("images 1,234", "4.5 ± 1.2", "4.00 ×", "the first 4 of 1,234", "32 × 32 px", "0123456789ab"):
        assert told in text, told
    assert "the first" not in Page(render(make_images(), num_images=4)).text
    assert "out" in Page(render([])).text and not Page(render([])).all("img")


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_pictures_are_the_images_and_their_patches(image_format: str) -> None:
    images = make_images(image_format=image_format)
    page = Page(render(images, image_format=image_format))
    pictures = [base64.b64decode((each["src"] or "").partition("base64,")[2]) for each in page.all("img")]
    assert [each["src"] for each in page.all("img")][0].startswith(f"data:image/{image_format};base64,")  # pyright: ignore
    assert pictures[::2] == [image.image for image in images]  # byte by byte
    for image, dimmed in zip(images, pictures[1::2], strict=True):
        before, after = (
            np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int)
            for each in (image.image, dimmed)
        )
        for position in range(16):
            top, left = (8 * at for at in divmod(position, 4))
            old, new = (each[top : top + 8, left : left + 8] for each in (before, after))
            spread = np.abs(new - new.mean(-1, keepdims=True)).mean()  # grey has none; a JPEG some
            if position in image.patch_positions:
                assert np.abs(old - new).mean() < 20 and spread > 25
            else:
                assert new.mean() < 80 and spread < 15
