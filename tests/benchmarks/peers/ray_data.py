"""Ray Data as its documentation has it: read_webdataset, map_batches of a function and of a class, write_parquet.

    python -m tests.benchmarks.peers.ray_data SHARDS_FOLDER OUTPUT --images N [--null] [--fused]

`--fused` decodes in the actor that encodes, so that no pixels travel. An actor asks for half a core: with a whole one
each, two of them leave none to the tasks that read, and nothing moves.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import torch

from tests.benchmarks.peers import common
from tests.benchmarks.peers.common import BATCH, Clock, Decoder, Encoder, Task

ACTORS = 2
_ACTOR_CPUS = 0.5
_IN_FLIGHT = 2
_IMAGES = ("jpg", "jpeg", "png")


class Select:
    """Which members of a shard are read on. The first one begins the clock: it has just been read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, name: str) -> bool:
        self._clock.begin()
        return name.endswith(_IMAGES)


class Decode:
    """Batches of encoded images to batches of pixels."""

    def __init__(self, task: Task) -> None:
        self._decode = Decoder(task)

    def __call__(self, batch: pd.DataFrame) -> dict[str, Any]:
        columns = [batch[name] for name in _IMAGES if name in batch]
        images = columns[0]
        for column in columns[1:]:
            images = images.fillna(column)
        pixels = np.stack([self._decode(image) for image in images])
        return {"key": batch["__key__"].to_numpy(), "pixels": pixels}


class Encode:
    """Batches of pixels to tables of tokens."""

    def __init__(self, task: Task) -> None:
        self._encode = Encoder(task)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        return common.to_table(self._encode(batch["key"].tolist(), batch["pixels"]))


class DecodeAndEncode:
    """Both in the actor: no pixels travel."""

    def __init__(self, task: Task) -> None:
        self._decode = Decode(task)
        self._encode = Encode(task)

    def __call__(self, batch: pd.DataFrame) -> pa.Table:
        return self._encode(self._decode(batch))


def warm_up(task: Task) -> None:
    """In a worker that tasks will run in: import what they import."""
    torch.set_num_threads(1)
    Decode(task)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--actors", type=int, default=ACTORS)
        parser.add_argument("--fused", action="store_true")

    task, given = common.parse_task(__doc__, ranks=1, workers=0, add=add)
    with common.own_memory() as memory:
        run(task, given)
    common.report_parquet(task, memory)


def run(task: Task, given: argparse.Namespace) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 120  # actors that come later would count what they take to start
    ray.get([ray.remote(warm_up).remote(task) for _ in range(4)])
    images = ray.data.read_webdataset(task.shards, decoder=None, fileselect=Select(task.clock))
    pool = ray.data.ActorPoolStrategy(size=given.actors, max_tasks_in_flight_per_actor=_IN_FLIGHT)
    actors: dict[str, Any] = dict(
        fn_constructor_args=(task,), compute=pool, batch_size=BATCH, num_cpus=_ACTOR_CPUS
    )
    if given.fused:
        tokens = images.map_batches(DecodeAndEncode, batch_format="pandas", **actors)
    else:
        decode: Any = Decode(task).__call__
        pixels = images.map_batches(decode, batch_size=None, batch_format="pandas")
        tokens = pixels.map_batches(Encode, **actors)
    tokens.write_parquet(str(task.output), compression="zstd")
    ray.shutdown()


if __name__ == "__main__":
    main()
