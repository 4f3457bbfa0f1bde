"""Daft as its guide has it: a data frame of image files, `download`, a class with the tokenizer, `write_parquet`.

    python -m tests.benchmarks.peers.daft_frame FILES_FOLDER OUTPUT --images N [--null]

The class decodes and encodes, in a process a core, so that no pixels travel. What Daft reads ahead until the first
image is decoded does not count.

For a Python that has daft, which need not be ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daft  # pyright: ignore[reportMissingImports]
import numpy as np
import pyarrow as pa

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, Task

_ROW = daft.DataType.from_arrow_type(pa.struct(list(common.SCHEMA)))


class Tokenize:
    """Batches of encoded images to rows. Daft makes one in each process."""

    def __init__(self, task: Task) -> None:
        self._decode, self._encode = common.load_parts(task)

    @daft.method.batch(return_dtype=_ROW, unnest=True, batch_size=BATCH)
    def __call__(self, paths: Any, images: Any) -> pa.Array:
        """Of two Series."""
        keys = [Path(path).stem for path in paths.to_pylist()]
        pixels = np.stack([self._decode(image) for image in images.to_pylist()])
        return common.to_table(self._encode(keys, pixels)).to_struct_array().combine_chunks()


def run(task: Task) -> None:
    daft.set_runner_native()
    tokenize: Any = daft.cls(Tokenize, use_process=True, max_concurrency=task.ranks)(task)
    images = daft.from_pydict({"path": task.files}).with_column("image", daft.col("path").download())
    tokens = images.select(tokenize(images["path"], images["image"]))
    tokens.write_parquet(str(task.output), compression="zstd")


def main() -> None:
    task, _ = common.parse_task(__doc__)
    with common.own_memory() as memory:
        run(task)
    common.report_parquet(task, memory)


if __name__ == "__main__":
    main()
