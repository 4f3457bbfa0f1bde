"""Encoding by the packaged tokenizer beside another revision of this repository, in turn, one thread each.

    python -m tests.benchmarks.encode_against --rev REV [--shards GLOB] [--rounds 7] [--json FILE]

Each side is a process with its own code and its own packaged weights; both get the same pixels, and take turns. What
is compared is CPU time. Without --shards the images are crops that the demo corpus leaves out. Beside the speed stands
what it buys: PSNR at equal token counts, patches kept by the drop-cost head, and the nats of a patch code, which two
tokenizers with other codes do not share.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tests.benchmarks.measure import Results, from_pairs
from tests.benchmarks.pictures import read_images

ROOT = Path(__file__).parents[2]
ROUNDS = 7
IMAGE_SIZE = 128
_SIDE = Path(__file__).with_name("encode_side.py")
_BATCH = 16
_PARTS = {
    "encoder": "encoder",
    "entropy": "entropy model",
    "both": "encoder + entropy model",
}


class Side:
    """A process that measures one revision when it is asked."""

    def __init__(self, root: Path, pixels: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SIDE), str(root), str(pixels)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The answer of `encode_side` to "speed" or "quality"."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{what}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare_encoding(
    results: Results, rev: str, pixels: np.ndarray, *, rounds: int = ROUNDS
) -> dict[str, dict[str, Any]]:
    """Figures "against/encode_…" of this working tree beside revision `rev`, on pixels (M, S, S, 3) uint8 of the
    packaged tokenizer's size; whole batches of 16 are timed. Returns the quality of both sides, "ours" and "other"."""
    with tempfile.TemporaryDirectory() as folder:
        other_root, array = Path(folder) / "other", Path(folder) / "pixels.npy"
        extract_revision(rev, other_root)
        np.save(array, pixels)
        with _side(ROOT, array) as ours, _side(other_root, array) as other:
            sides = {"ours": ours, "other": other}
            for side in sides.values():
                side.ask("speed")
            found = [{name: side.ask("speed") for name, side in sides.items()} for _ in range(rounds)]
            quality = {name: side.ask("quality") for name, side in sides.items()}
    for part, name in _PARTS.items():
        results.add(
            from_pairs(
                f"against/encode_{part}",
                f"{name}, one core / {rev}",
                [(1 / _seconds(row["ours"], part), 1 / _seconds(row["other"], part)) for row in found],
                unit="images/s of CPU",
            )  # fmt: skip
        )
    for name, figures in quality.items():
        told = ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if key != "fingerprint")
        results.note(f"{name} ({figures['fingerprint']}): {told}")
    return quality


def extract_revision(rev: str, folder: Path) -> None:
    """The files of `rev` into `folder`, which is made. Raises CalledProcessError where there is no such revision."""
    packed = subprocess.run(["git", "archive", rev], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")


@contextmanager
def _side(root: Path, pixels: Path) -> Iterator[Side]:
    side = Side(root, pixels)
    try:
        yield side
    finally:
        side.close()


def _seconds(figures: dict[str, float], part: str) -> float:
    if part == "both":
        return figures["encoder_s"] + figures["entropy_s"]
    return figures[f"{part}_s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rev", required=True, help="revision to compare with")
    parser.add_argument("--shards", nargs="*", help="image shards, such as held-out ones")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each side")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if arguments.shards:
        pictures = read_images(arguments.shards)
    else:
        pictures = [crop.image for crop in held_out_crops(crops_per_source=_BATCH)]
    preprocess = PreprocessConfig(image_size=IMAGE_SIZE)
    pixels = np.stack([decode_image(picture, preprocess)[0] for picture in pictures])
    results = Results()
    compare_encoding(results, arguments.rev, pixels, rounds=arguments.rounds)
    if arguments.json:
        results.write(arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
