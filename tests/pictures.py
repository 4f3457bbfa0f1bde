"""Image shards made on the spot for the tests of the jobs: real crops, hostile members, flat and busy pictures."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig

Member = tuple[str, bytes]


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def write_shard(path: Path, members: Sequence[Member]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def crop_members(count: int, *, first: int = 0) -> list[Member]:
    """Real crops with labels, `count` of them."""
    members = []
    for crop in held_out_crops(crops_per_source=first + count)[first : first + count]:
        suffix = "png" if crop.image[:4] == b"\x89PNG" else "jpg"
        members += [(f"{crop.key}.{suffix}", crop.image), (f"{crop.key}.cls", str(crop.label).encode())]
    return members


def png_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that declares side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side // 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile_members() -> tuple[list[Member], list[str], dict[str, str]]:
    """Members, the keys that must become rows, and the keys that must be quarantined with their error."""
    colour = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 40).convert("RGB")
    jpeg = encode(colour, "JPEG")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    deep = Image.fromarray(np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16))
    frames = [Image.new("P", (20, 20), i) for i in range(3)]
    good: list[Member] = [
        ("cmyk.jpg", encode(colour.convert("CMYK"), "JPEG")),
        ("palette.png", encode(colour.convert("P"))),
        ("deep.png", encode(deep)),
        ("animated.gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        ("rotated.jpg", encode(colour, "JPEG", exif=rotated)),
        ("pixel.png", encode(Image.new("RGB", (1, 1), "red"))),
        ("line.png", encode(Image.new("RGB", (20000, 1), "blue"))),
        ("nolabel.jpg", jpeg),
        ("../../etc/escape.jpg", jpeg),
    ]
    bad: list[tuple[Member, str]] = [
        (("truncated.jpg", jpeg[: len(jpeg) // 2]), "Truncated"),
        (("html.jpg", b"<html>404</html>"), "NotAnImage"),
        (("empty.jpg", b""), "EmptyFile"),
        (("bomb.png", png_bomb(20_000)), "TooManyPixels"),
        (("onlytext.txt", b"a caption of nothing"), "NoImage"),
    ]
    members = [*good, *(member for member, _ in bad), ("badlabel.jpg", jpeg), ("badlabel.cls", b"cat")]
    errors = {name.rsplit(".", 1)[0]: error for (name, _), error in bad} | {"badlabel": "BadLabel"}
    return members, [name.rsplit(".", 1)[0] for name, _ in good], errors


def small_tokenizer(folder: Path) -> str:
    """A tokenizer of 32 px images with random weights whose entropies spread; the folder."""
    torch.manual_seed(0)
    stack = StackConfig(width=32, depth=1, heads=2)
    grid = GridStackConfig(width=32, depth=1, heads=2, attend_every=1)
    codebook = GlobalQuantizerConfig(codebook_size=125)
    model = TaTok(
        TaTokConfig(
            image_size=32, patch_size=8, num_globals=2, search_passes=0, encoder=grid, decoder=grid, prior=stack,
            global_codebook=codebook, patch_codebook=codebook,
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.prior.patch_head.rows, std=0.6)
    ladders = calibrate_ladders(model, torch.rand(16, 3, 32, 32))
    save_tokenizer(str(folder), model, ladders=ladders, training={})
    return str(folder)
