"""litData as its guide has it: `optimize` over batches of image files, with the tokenizer in each worker.

    python -m tests.benchmarks.peers.litdata_optimize FILES_FOLDER OUTPUT --images N [--null]

Workers take batches from one queue. What counts as written are the chunks; the index, which follows when the workers
have ended, does not. The rows are read back from them into a Parquet file, so that they can be compared.

For a Python that has litdata, which need not be ours.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata  # pyright: ignore[reportMissingImports]
import numpy as np
import pyarrow.parquet as pq

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, Row, Task

_CHUNK_BYTES = "64MB"


class Tokenize:
    """Paths of a batch of images to their rows; a worker loads the model when it has its first batch."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, paths: list[str]) -> Iterator[dict[str, Any]]:
        decode, encode = common.load_parts(self._task)
        pixels = np.stack([decode(Path(path).read_bytes()) for path in paths])
        for row in encode([Path(path).stem for path in paths], pixels):
            yield {
                "key": row.key,
                "global_codes": row.global_codes.astype(np.uint16),
                "patch_codes": row.patch_codes.astype(np.uint16),
                "patch_positions": row.patch_positions.astype(np.uint16),
            }


def run(task: Task, folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as caches
    ):  # it empties the folders that it has for all users otherwise
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{caches}/chunks"
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{caches}/data"
        litdata.optimize(
            fn=Tokenize(task),
            inputs=task.files,
            output_dir=str(folder),
            batch_size=BATCH,
            chunk_bytes=_CHUNK_BYTES,
            num_workers=task.ranks,
            verbose=False,
        )


def read_rows(folder: Path) -> list[Row]:
    return [Row(**row) for row in litdata.StreamingDataset(str(folder))]


def main() -> None:
    task, _ = common.parse_task(__doc__)
    folder = task.output / "chunks"
    with common.own_memory() as memory:
        run(task, folder)
    chunks = list(folder.glob("*.bin"))
    rows = read_rows(folder)
    pq.write_table(common.to_table(rows), task.output / "rows.parquet")
    common.report(task, chunks, len(rows), memory)


if __name__ == "__main__":
    main()
