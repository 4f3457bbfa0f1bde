"""One way to read a token dataset, as a process of its own: `python -m tests.benchmarks.loader_side SIDE URL` prints
tokens per second and the most memory that the process had.

`steps` is the loader that train_ar has, `packed` and `padded` are TokenLoader by its layouts.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tatok_pipe import TokenLoader
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig

EPOCHS = 4  # timed, after another one
ROWS = 64  # of a step
NUM_CLASSES = 1000


def open_steps(url: str) -> Iterable[Any]:
    dataset = read_training_set(url)
    condition = ConditionConfig(kind="class", num_classes=NUM_CLASSES, drop_condition=0.0)
    config = LoaderConfig(rows_per_step=ROWS)
    return StepLoader([Source(url, dataset.shards)], dataset.spec, config, condition=condition, seed=0)


SIDES: dict[str, Callable[[str], Iterable[Any]]] = {
    "steps": open_steps,
    "packed": lambda url: TokenLoader(url, rows_per_step=ROWS, num_classes=NUM_CLASSES),
    "padded": lambda url: TokenLoader(url, rows_per_step=ROWS, num_classes=NUM_CLASSES, layout="padded"),
}


def peak_bytes() -> int:
    """The most memory of this process; getrusage would count what the one had that started it."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def main(side: str, url: str) -> None:
    num_elements = read_training_set(url).num_elements
    begin = 0.0
    for batch in SIDES[side](url):
        if not begin and batch.epoch == 1:
            begin = time.perf_counter()
        if batch.epoch > EPOCHS:
            break
    tokens_per_s = EPOCHS * num_elements / (time.perf_counter() - begin)
    print(json.dumps({"tokens_per_s": tokens_per_s, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
