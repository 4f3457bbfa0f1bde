"""Images as text: decoded where there can be no mistake, and nothing else is touched."""

from __future__ import annotations

import base64
import io
import random

import pytest
from PIL import Image

from tatok_pipe.images.encoded_text import decode_text
from tatok_pipe.images.formats.table import NAMES


def picture(format: str) -> bytes:
    out = io.BytesIO()
    Image.effect_mandelbrot((33, 21), (-2, -1, 1, 1), 40).convert("RGB").save(out, format)
    return out.getvalue()


PICTURES = [*map(picture, NAMES), b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"]


@pytest.mark.parametrize("image", PICTURES)
def test_every_way_of_writing_base64(image: bytes) -> None:
    plain = base64.b64encode(image)
    for text in (
        plain, base64.encodebytes(image), base64.urlsafe_b64encode(image), plain.rstrip(b"="), b" \n" + plain + b"\r\n",
        b"data:image/jpeg;base64," + plain, b"data:image/png;charset=utf-8;base64," + plain,
        b"DATA:image/x;base64," + plain,
    ):  # fmt: skip
        assert decode_text(text) == image
    assert decode_text(image) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"https://example.org/a.jpg", b"/data/images/0001/00000001.jpg", b"A" * 4000, b"data:,hello",
        b"data:image/svg+xml,%3Csvg%3E", b"data:text/plain;base64," + base64.b64encode(PICTURES[0]),
        base64.b64encode(b"only some text that is no image at all"), base64.b64encode(PICTURES[0]) + b"!",
        b"P3 1 1 255 0 0 0 " * 9, b"<html>404</html>",
    ],
)  # fmt: skip
def test_what_is_no_image_as_text(data: bytes) -> None:
    assert decode_text(data) is None


def test_random_bytes_are_left_alone() -> None:
    randoms = random.Random(0)
    for begin in (b"", b"BM", b"GIF89a", b"P6\n", b"\xff\xd8\xff", b"RIFF"):
        assert all(decode_text(begin + randoms.randbytes(300)) is None for _ in range(200))
