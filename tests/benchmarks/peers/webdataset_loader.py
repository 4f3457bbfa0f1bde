"""WebDataset as its documentation has it: a pipeline over the shards, a loader, the model, one Parquet file a rank.

    python -m tests.benchmarks.peers.webdataset_loader SHARDS_FOLDER OUTPUT --images N [--null] [--workers N]

Shards are shared out over the ranks, as `nodesplitter` does it under torchrun, and over their loader's workers.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import webdataset

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, IMAGE_ENDINGS, Decoder, Encoder, Task

web: Any = webdataset  # what it exports is not known to type checkers

_ROW_GROUP_ROWS = 2048


def tokenize(rank: int, task: Task, barrier: Any, num_workers: int) -> None:
    encode = Encoder(task)
    dataset = (
        web.WebDataset(
            task.shards[rank :: task.ranks], shardshuffle=False, select_files=is_image, empty_check=False
        )
        .to_tuple("__key__", "jpg;jpeg;png")
        .map_tuple(str, Decoder(task))
        .batched(BATCH)
    )
    loader = web.WebLoader(dataset, batch_size=None, num_workers=num_workers)
    rows = []
    barrier.wait()
    with pq.ParquetWriter(task.output / f"{rank}.parquet", common.SCHEMA, compression="zstd") as writer:
        for keys, pixels in loader:
            rows += encode(keys, pixels.numpy())
            if len(rows) >= _ROW_GROUP_ROWS:
                writer.write_table(common.to_table(rows))
                rows = []
        if rows:
            writer.write_table(common.to_table(rows))


def is_image(name: str) -> bool:
    return name.endswith(IMAGE_ENDINGS)


def main() -> None:
    task, given = common.parse_task(__doc__, add=common.add_workers)
    with common.own_memory() as memory:
        common.run_ranks(tokenize, task, given.workers)
    common.report_parquet(task, memory)


if __name__ == "__main__":
    main()
