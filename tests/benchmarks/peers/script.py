"""As the scripts of published tokenizers do it: a Dataset of image files, DataLoader workers, and one file of codes an
image.

    python -m tests.benchmarks.peers.script SHARDS_FOLDER OUTPUT --images N [--null] [--workers N] [--layout npy|json]

They read a folder of images, so the members of the shards are written into files first, which is not counted (nor is a
SHARDS_FOLDER that `extract` has made). `npy` is what LlamaGen leaves: one .npy an image. `json` is what 1d-tokenizer
leaves: every record stays in memory, and one JSON a rank is written at the end. Such a script is started once a device;
here once a core.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, IMAGE_ENDINGS, Decoder, Encoder, Row, Task


class ImageFiles(Dataset[tuple[str, torch.Tensor]]):
    def __init__(self, paths: list[Path], decode: Decoder) -> None:
        self._paths = paths
        self._decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        path = self._paths[index]
        return f"{path.parent.name}/{path.stem}", torch.from_numpy(self._decode(path.read_bytes()).copy())


def extract(shards: list[str], folder: Path) -> None:
    """The images of the shards as files, a folder a shard."""
    for shard in shards:
        target = folder / Path(shard).stem
        target.mkdir(parents=True)
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(IMAGE_ENDINGS):
                    file = tar.extractfile(member)
                    assert file is not None
                    (target / Path(member.name).name).write_bytes(file.read())


def tokenize(rank: int, task: Task, barrier: Any, layout: str, num_workers: int) -> None:
    encode = Encoder(task)
    paths = [Path(path) for path in task.files[rank :: task.ranks]]
    loader = DataLoader(ImageFiles(paths, Decoder(task)), batch_size=BATCH, num_workers=num_workers)
    records = []
    barrier.wait()
    for keys, pixels in loader:
        rows = encode(keys, pixels.numpy())
        if layout == "npy":
            for row in rows:
                np.save(task.output / f"{row.key}.npy", to_array(row))
        else:
            records += [{"key": row.key, "tokens": to_array(row).tolist()} for row in rows]
    if layout == "json":
        (task.output / f"{rank}.json").write_text(json.dumps(records))


def to_array(row: Row) -> np.ndarray:
    """One array: the global codes, the kept patch codes, their positions."""
    return np.concatenate([row.global_codes, row.patch_codes, row.patch_positions]).astype(np.uint16)


def read_rows(output: Path, *, num_globals: int) -> list[Row]:
    """All rows of a folder of .npy files."""
    rows = []
    for path in sorted(output.rglob("*.npy")):
        values = np.load(path).astype(np.int64)
        codes, positions = values[num_globals:].reshape(2, -1)
        rows.append(Row(path.stem, values[:num_globals], codes, positions))
    return rows


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        common.add_workers(parser)
        parser.add_argument("--layout", choices=("npy", "json"), default="npy")

    task, given = common.parse_task(__doc__, add=add)
    with tempfile.TemporaryDirectory() as folder, common.own_memory() as memory:
        if task.shards:
            extract(task.shards, Path(folder))
            task = replace(task, source=Path(folder))
        for each in task.source.iterdir():
            (task.output / each.name).mkdir()
        common.run_ranks(tokenize, task, given.layout, given.workers)
    if given.layout == "npy":
        results = sorted(task.output.rglob("*.npy"))
        num_rows = len(results)
    else:
        results = sorted(task.output.glob("*.json"))
        num_rows = sum(len(json.loads(path.read_text())) for path in results)
    common.report(task, results, num_rows, memory)


if __name__ == "__main__":
    main()
