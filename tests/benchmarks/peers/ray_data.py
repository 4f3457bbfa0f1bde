"""Ray Data in the fastest form of those that were tried: read_webdataset, map_batches, write_parquet, with everything
that an image goes through in one task.

    python -m tests.benchmarks.peers.ray_data SHARDS_FOLDER OUTPUT --images N [--null]

Its guides put a model into a pool of actors. Then encoded images, and with a decoder of its own pixels, travel through
the object store to them, and tokens from there to the tasks that write. A function that keeps its model in the process
is fused with reading and writing, so that nothing travels, under two conditions: one block a shard
(`override_num_blocks`; it would split what it reads otherwise), and no `batch_size`, by which it would collect rows
first. Ray takes a whole core for a task.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, IMAGE_ENDINGS, Clock, Task

_COLUMNS = tuple(ending.removeprefix(".") for ending in IMAGE_ENDINGS)


class Select:
    """Which members of a shard are read on. The first one begins the clock: it has just been read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, name: str) -> bool:
        self._clock.begin()
        return name.endswith(IMAGE_ENDINGS)


class Tokenize:
    """Some hundred images as they were read to a table of tokens, with the model of the process."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, block: pd.DataFrame) -> pa.Table:
        decode, encode = common.load_parts(self._task)
        columns = [block[name] for name in _COLUMNS if name in block]
        images = columns[0]
        for column in columns[1:]:
            images = images.fillna(column)
        keys = block["__key__"].tolist()
        rows = []
        for begin in range(0, len(keys), BATCH):
            pixels = np.stack([decode(image) for image in images.iloc[begin : begin + BATCH]])
            rows += encode(keys[begin : begin + BATCH], pixels)
        return common.to_table(rows)


def warm_up(task: Task) -> None:
    """In each of the processes that tasks will run in."""
    common.load_parts(task)


def main() -> None:
    task, _ = common.parse_task(__doc__)
    with common.own_memory() as memory:
        run(task)
    common.report_parquet(task, memory)


def run(task: Task) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=task.ranks,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.get([ray.remote(warm_up).remote(task) for _ in range(task.ranks)])
    images = ray.data.read_webdataset(
        task.shards, decoder=None, fileselect=Select(task.clock), override_num_blocks=len(task.shards)
    )
    # A bound method is a function to Ray Data; of an object that is called it would make an actor.
    tokenize: Any = Tokenize(task).__call__
    tokens = images.map_batches(tokenize, batch_size=None, batch_format="pandas")
    tokens.write_parquet(str(task.output), compression="zstd")
    ray.shutdown()


if __name__ == "__main__":
    main()
