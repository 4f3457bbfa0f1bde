"""A small corpus of real pictures that needs no download: crops of the images inside the scikit-image and
scikit-learn wheels, written as WebDataset shards. For demonstrations, tests and first training runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import random
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from tatok_pipe.errors import UserError
from tatok_pipe.records import ImageSample

VERSION = 1  # raise it when the same parameters would give other crops
_MARKER = "corpus.json"
_INSTALL = 'pip install "tatok_pipe[demo]"'

MIN_SIDE_PIXELS = 96
MAX_SIDE_PIXELS = 320


@dataclass(frozen=True)
class Source:
    """One picture. Its place in SOURCES is its class label."""

    name: str
    kind: str  # "photo", "texture", "text", "medical" or "space"
    package: str
    path: str  # inside the package


SOURCES = (
    Source("astronaut", "photo", "skimage", "data/astronaut.png"),
    Source("camera", "photo", "skimage", "data/camera.png"),
    Source("chelsea", "photo", "skimage", "data/chelsea.png"),
    Source("china", "photo", "sklearn", "datasets/images/china.jpg"),
    Source("coffee", "photo", "skimage", "data/coffee.png"),
    Source("coins", "photo", "skimage", "data/coins.png"),
    Source("flower", "photo", "sklearn", "datasets/images/flower.jpg"),
    Source("motorcycle_left", "photo", "skimage", "data/motorcycle_left.png"),
    Source("motorcycle_right", "photo", "skimage", "data/motorcycle_right.png"),
    Source("rocket", "photo", "skimage", "data/rocket.jpg"),
    Source("brick", "texture", "skimage", "data/brick.png"),
    Source("grass", "texture", "skimage", "data/grass.png"),
    Source("gravel", "texture", "skimage", "data/gravel.png"),
    Source("page", "text", "skimage", "data/page.png"),
    Source("text", "text", "skimage", "data/text.png"),
    Source("cell", "medical", "skimage", "data/cell.png"),
    Source("ihc", "medical", "skimage", "data/ihc.png"),
    Source("retina", "medical", "skimage", "data/retina.jpg"),
    Source("hubble_deep_field", "space", "skimage", "data/hubble_deep_field.jpg"),
    Source("moon", "space", "skimage", "data/moon.png"),
)
# Never written into a corpus: a photograph with both smooth and detailed parts, a texture, and scanned text.
HELD_OUT = ("coffee", "gravel", "text")


@dataclass(frozen=True)
class DemoCorpus:
    shards: list[str]  # absolute paths
    num_images: int


@dataclass(frozen=True)
class _Recipe:
    """All that decides the bytes of a corpus, beside the versions of Pillow and of the wheels."""

    version: int
    num_shards: int
    crops_per_source: int
    seed: int


def write_demo_corpus(
    directory: str | Path, *, num_shards: int = 8, crops_per_source: int = 32, seed: int = 0
) -> DemoCorpus:
    """Write the corpus into `directory`, or take the one that is there: 544 images of 17 pictures by default.

    A sample is a `.jpg` (`.png` for text), a `.cls` (place in SOURCES) and a `.json` (source, kind, box in
    source pixels, whether mirrored). Every source is spread evenly over the shards. The same arguments give
    the same bytes. The directory appears complete or not at all. Raises UserError where something else lies
    there, or where the packages that hold the pictures are missing.
    """
    target = Path(directory).absolute()
    recipe = _Recipe(VERSION, num_shards, crops_per_source, seed)
    if num_shards < 1 or crops_per_source < 1:
        raise UserError(f"num_shards={num_shards}, crops_per_source={crops_per_source}: expected 1 or more")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        return _reuse(target, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(partial, recipe)
        partial.chmod(0o755)  # mkdtemp's directories are for their maker alone
        try:
            partial.rename(target)
        except OSError:
            if not (target / _MARKER).exists():
                raise
            # Another process finished first; its corpus has to be the same.
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _reuse(target, recipe)


def held_out_crops(*, crops_per_source: int = 32, seed: int = 0) -> list[ImageSample]:
    """Crops of the HELD_OUT pictures, made like those of the corpus, to evaluate on."""
    return crops_of(HELD_OUT, crops_per_source=crops_per_source, seed=seed)


def crops_of(names: Collection[str], *, crops_per_source: int, seed: int = 0) -> list[ImageSample]:
    """The same of the pictures of these names."""
    return [
        sample
        for source in SOURCES
        if source.name in names
        for sample in _crop_source(source, num_crops=crops_per_source, seed=seed)
    ]


def _write(directory: Path, recipe: _Recipe) -> None:
    try:
        from webdataset.writer import TarWriter
    except ImportError:
        raise UserError(f"the demo corpus is written with webdataset, which is missing; {_INSTALL}") from None
    shards: list[list[ImageSample]] = [[] for _ in range(recipe.num_shards)]
    shown = [source for source in SOURCES if source.name not in HELD_OUT]
    for place, source in enumerate(shown):
        crops = _crop_source(source, num_crops=recipe.crops_per_source, seed=recipe.seed)
        for number, sample in enumerate(crops):
            shards[(place + number) % recipe.num_shards].append(sample)
    digests: dict[str, str] = {}
    for shard, samples in enumerate(shards):
        samples.sort(key=lambda sample: hashlib.sha256(f"{recipe.seed}/{sample.key}".encode()).digest())
        path = directory / f"demo-{shard:06d}.tar"
        with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                extension = "png" if sample.image.startswith(b"\x89PNG") else "jpg"
                tar.write(
                    {
                        "__key__": sample.key,
                        extension: sample.image,
                        "cls": str(sample.label).encode(),
                        "json": str(sample.meta).encode(),
                    }
                )
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    corpus = {
        "recipe": asdict(recipe),
        "num_images": sum(len(samples) for samples in shards),
        "classes": [source.name for source in SOURCES],
        "held_out": HELD_OUT,
        "sha256": digests,
    }
    (directory / _MARKER).write_text(json.dumps(corpus, indent=2) + "\n")


def _reuse(directory: Path, recipe: _Recipe) -> DemoCorpus:
    advice = "give another directory, or delete this one to have the corpus written anew"
    try:
        corpus = json.loads((directory / _MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: expected a demo corpus, found other files; {advice}") from None
    if corpus["recipe"] != asdict(recipe):
        raise UserError(f"{directory}: made with {corpus['recipe']}, not {asdict(recipe)}; {advice}")
    for name, digest in corpus["sha256"].items():
        path = directory / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{path}: missing, or not as it was written; {advice}")
    return DemoCorpus([str(directory / name) for name in corpus["sha256"]], corpus["num_images"])


def _crop_source(source: Source, *, num_crops: int, seed: int) -> Iterator[ImageSample]:
    picture = open_source(source)
    dice = random.Random(f"{seed}/{source.name}")
    for number in range(num_crops):
        box = _draw_box(picture.size, dice)
        crop = picture.crop(box)
        scale = MAX_SIDE_PIXELS / max(crop.size)
        if scale < 1:
            size = (round(crop.width * scale), round(crop.height * scale))
            crop = crop.resize(size, Image.Resampling.LANCZOS)
        is_mirrored = dice.random() < 0.5 and source.kind != "text"
        if is_mirrored:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        encoded = io.BytesIO()
        if source.kind == "text":
            crop.save(encoded, "PNG")
        else:
            crop.save(encoded, "JPEG", quality=92)
        meta = {"source": source.name, "kind": source.kind, "box": box, "mirrored": is_mirrored}
        yield ImageSample(
            key=f"{source.name}_{number:04d}",
            image=encoded.getvalue(),
            label=SOURCES.index(source),
            meta=json.dumps(meta),
        )


def _draw_box(size: tuple[int, int], dice: random.Random) -> tuple[int, int, int, int]:
    """Short side log-uniform from MIN_SIDE_PIXELS to the picture's own; one crop in four is not square."""
    width, height = size
    short = min(width, height)
    side = round(MIN_SIDE_PIXELS * (short / MIN_SIDE_PIXELS) ** dice.random())
    stretch = 1 + 0.6 * dice.random()
    shape = dice.random()
    crop_width = min(width, round(side * stretch)) if shape < 0.125 else side
    crop_height = min(height, round(side * stretch)) if 0.125 <= shape < 0.25 else side
    left = int(dice.random() * (width - crop_width + 1))
    top = int(dice.random() * (height - crop_height + 1))
    return left, top, left + crop_width, top + crop_height


def open_source(source: Source) -> Image.Image:
    """The whole picture. Raises UserError where the package that holds it is missing."""
    # The file is read where the wheel put it: skimage.data would fetch what a wheel lacks from the network.
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the demo corpus takes pictures from {source.package}, which is missing; {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / source.path
    if not path.is_file():
        raise UserError(f"{path}: this release of {source.package} came without the picture; {_INSTALL}")
    with Image.open(path) as picture:
        picture.load()
        return picture.copy()
