"""Where generated images are, and how they are read back.

<url>/_generation.json           written first: what is generated, from which models
<url>/images/<number>.png        layout `files`: the images
<url>/shards/<name>.tar          layout `webdataset`: the images of a shard with their classes and rows
<url>/shards/<name>.json         the rows of a shard, after its images; its arrival is the commit of the shard
<url>/contact_sheet.png, gallery.html, samples.npz, _summary.json   written last

A row says what an image is made of: number, seed, label, tokens. Numbers have nine digits, names of shards six.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tatok_pipe import storage

PLAN_FILE = "_generation.json"
SUMMARY_FILE = "_summary.json"
CONTACT_SHEET = "contact_sheet.png"
GALLERY = "gallery.html"
NPZ = "samples.npz"
LAYOUTS = ("files", "webdataset")
IMAGE_FORMATS = ("png", "webp")


@dataclass(frozen=True)
class GeneratedImage:
    """One image and what it was made of. Tokens are as in a token dataset."""

    number: int
    seed: int
    label: int | None  # class it was asked for, where there was one
    global_codes: list[int]
    patch_codes: list[int]
    patch_positions: list[int]  # strictly increasing raster indices
    image: bytes  # encoded

    @property
    def num_tokens(self) -> int:
        return len(self.global_codes) + len(self.patch_codes)

    @property
    def name(self) -> str:
        return f"{self.number:09d}"

    def row(self) -> dict[str, Any]:
        """Everything but the image, as JSON types."""
        values = asdict(self)
        del values["image"]
        return values | {"num_tokens": self.num_tokens}

    @classmethod
    def from_row(cls, row: dict[str, Any], image: bytes) -> GeneratedImage:
        return cls(**{name: value for name, value in row.items() if name != "num_tokens"}, image=image)


def shard_name(index: int) -> str:
    return f"{index:06d}"


def committed_shards(url: str) -> set[str]:
    """The names of the shards that are done, from one listing."""
    files = storage.list_files(storage.join(url, "shards"))
    return {name.removesuffix(".json") for name in files if name.endswith(".json")}


def commit_shard(url: str, name: str, images: list[GeneratedImage], *, layout: str, image_format: str) -> int:
    """Publish a finished shard; the bytes written. The same images give the same bytes, so that of two attempts it does
    not matter which one wins."""
    if layout == "files":
        for image in images:
            target = storage.join(url, "images", f"{image.name}.{image_format}")
            storage.publish_bytes(image.image, target, exclusive=False)
        num_bytes = sum(len(image.image) for image in images)
    else:
        content = _to_tar(images, image_format)
        storage.publish_bytes(content, storage.join(url, "shards", f"{name}.tar"), exclusive=False)
        num_bytes = len(content)
    rows = _to_json([image.row() for image in images])
    storage.publish_bytes(rows, storage.join(url, "shards", f"{name}.json"), exclusive=True)
    return num_bytes + len(rows)


def read_rows(url: str, name: str) -> list[dict[str, Any]]:
    """The rows of a committed shard, in order of their numbers."""
    return json.loads(storage.read_bytes(storage.join(url, "shards", f"{name}.json")))


def read_shard(url: str, name: str, *, layout: str, image_format: str) -> Iterator[GeneratedImage]:
    """The images of a committed shard, in order of their numbers."""
    rows = read_rows(url, name)
    if layout == "files":
        for row in rows:
            image = storage.join(url, "images", f"{row['number']:09d}.{image_format}")
            yield GeneratedImage.from_row(row, storage.read_bytes(image))
        return
    content = storage.read_bytes(storage.join(url, "shards", f"{name}.tar"))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for row in rows:
            file = tar.extractfile(f"{row['number']:09d}.{image_format}")
            assert file is not None
            yield GeneratedImage.from_row(row, file.read())


def _to_tar(images: list[GeneratedImage], image_format: str) -> bytes:
    """As WebDataset has it: members of a sample stand together, the image first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            members = [(image_format, image.image)]
            if image.label is not None:
                members.append(("cls", str(image.label).encode()))
            members.append(("json", _to_json(image.row())))
            for extension, data in members:
                info = tarfile.TarInfo(f"{image.name}.{extension}")  # time, owner: zero
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True) + "\n").encode()
