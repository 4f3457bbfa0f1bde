"""Image shards whose every part tells the shard: file names, keys, and a comment inside every picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from tests.pictures import Member, crop_members, write_shard

_SIDE_PIXELS = 48
BATCH_SIZE = 16  # images that the job encodes at once on a CPU


@dataclass(frozen=True)
class Corpus:
    """Shards 000000, 000001, ... of one folder (or S3 prefix)."""

    folder: str
    keys: dict[str, list[str]]  # of the samples, by shard

    @property
    def numbers(self) -> list[str]:
        return list(self.keys)

    def url(self, number: str) -> str:
        return f"{self.folder}/{number}.tar"

    def at(self, folder: str) -> Corpus:
        """The same shards at another place."""
        return Corpus(folder, self.keys)


def write_corpus(folder: Path, *, num_shards: int, num_images: int) -> Corpus:
    """Shards of `num_images` good pictures and one that is none, for the quarantine."""
    folder.mkdir(parents=True)
    keys = {}
    for index in range(num_shards):
        number = f"{index:06d}"
        members = _members(number, num_images)
        keys[number] = list(dict.fromkeys(name.partition(".")[0] for name, _ in members))
        write_shard(folder / f"{number}.tar", members)
    return Corpus(str(folder), keys)


def _members(number: str, num_images: int) -> list[Member]:
    members: list[Member] = []
    pictures = _pictures()
    for image in range(num_images):
        key = f"{number}-{image:03d}"
        picture = pictures[(int(number) * 5 + image) % len(pictures)]
        members += [(f"{key}.jpg", _with_comment(picture, number)), (f"{key}.cls", str(image).encode())]
        if image == num_images // 2:
            members.append((f"{number}-bad.jpg", b"<html>"))
    return members


@cache
def _pictures() -> list[Image.Image]:
    images = [Image.open(io.BytesIO(data)) for name, data in crop_members(16) if not name.endswith(".cls")]
    return [image.convert("RGB").resize((_SIDE_PIXELS, _SIDE_PIXELS)) for image in images]


def _with_comment(picture: Image.Image, number: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", comment=f"shard={number}".encode())
    return out.getvalue()
