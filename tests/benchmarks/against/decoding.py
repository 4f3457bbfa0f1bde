"""Decoding, one core: both sides in turn, beside the limit that libjpeg-turbo and torch's resizing set."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.against.sides import Comparison, Worker, workers
from tests.benchmarks.measure import from_pairs
from tests.benchmarks.pictures import make_photographs, read_images

SIZES = (256, 128)
_OTHER_FORMATS = {"PNG": {}, "WEBP": {"quality": 90}}
_OTHER_PICTURES = 100  # of PNG and WebP: they take longer
_LEAST_IMAGES = 400  # in a round
# Of 255. That a profile is applied or not, or a resize rounds otherwise, is less; another picture is more.
_MAX_MEAN_LEVELS = 1.0


def decoding(comparison: Comparison) -> None:
    pictures = read_images(comparison.shards) if comparison.shards else make_photographs()
    jpegs = [picture for picture in pictures if picture.startswith(b"\xff\xd8")]
    with tempfile.TemporaryDirectory() as folder:
        _compare(comparison, "JPEG", jpegs, Path(folder))
        for format, options in _OTHER_FORMATS.items():
            made = [_convert(picture, format, options) for picture in jpegs[:_OTHER_PICTURES]]
            _compare(comparison, format, made, Path(folder))


def _convert(picture: bytes, format: str, options: dict[str, int]) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(out, format, **options)
    return out.getvalue()


def _compare(comparison: Comparison, format: str, pictures: list[bytes], folder: Path) -> None:
    source = folder / format
    source.mkdir()
    for number, picture in enumerate(pictures):
        (source / f"{number:06d}").write_bytes(picture)
    programs = [("decode", comparison.ours), ("decode", comparison.theirs)]
    if format == "JPEG":
        programs.append(("decode_limit", comparison.ours))
    with workers(*programs) as sides:
        for side in sides:
            side.ask("load", folder=str(source))
        for size in SIZES:
            numbers = _check_pixels(comparison, format, sides[:2], size, folder)
            numbers *= max(1, _LEAST_IMAGES // len(numbers))
            rounds = [
                [side.ask("images_per_s", size=size, numbers=numbers) for side in sides]
                for _ in range(comparison.rounds)
            ]
            for place, name in enumerate((comparison.revision, "the limit"), 1):
                if place < len(sides):
                    comparison.results.add(
                        from_pairs(
                            f"decode/{format}/{size}/{'limit' if place == 2 else 'revision'}",
                            f"decode {format} to {size} px, one core / {name}",
                            [(speeds[0], speeds[place]) for speeds in rounds],
                            unit="images/s of CPU time",
                        )
                    )


def _check_pixels(
    comparison: Comparison, format: str, sides: list[Worker], size: int, folder: Path
) -> list[int]:
    """The pictures of which both sides make the same, but for what is told."""
    paths = [folder / f"{format}-{size}-{place}.npy" for place in range(2)]
    errors = [side.ask("pixels", size=size, path=str(path)) for side, path in zip(sides, paths, strict=True)]
    both = [n for n, found in enumerate(zip(*errors, strict=True)) if found == (None, None)]
    ours, theirs = (np.load(path, mmap_mode="r") for path in paths)
    same, changed, largest, means = 0, 0, 0, []
    for number in both:
        levels = np.abs(ours[number].astype(np.int16) - theirs[number])
        same += not levels.any()
        changed += int((levels > 0).sum())
        largest = max(largest, int(levels.max()))
        means.append(float(levels.mean()))
    for path in paths:
        path.unlink()
    if not both or max(means) > _MAX_MEAN_LEVELS:
        worst = max(means, default=float("nan"))
        raise SystemExit(f"{format} at {size} px: {len(both)} pictures, one differs by {worst:.2f} levels")
    share = changed / (len(both) * size * size * 3)
    comparison.results.note(
        f"{format} at {size} px: {same} of {len(both)} pictures are the same, {share:.2e} of the values differ, by "
        f"{largest} of 255 at most; of {len(ours)} one side or both refuse {len(ours) - len(both)}"
    )
    return both
