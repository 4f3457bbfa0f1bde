"""The parts of an evaluation as shards of a run: measured on an actor, each committed as one Parquet file.

<url>/<suite>/parts-<digest of the plan>/<part>.parquet      rows of a part; its arrival is the commit

Parts of another plan lie in another folder, so none is ever mixed in.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites import SUITES, Row
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.runs.activity import Activity, Track
from tatok_pipe.runs.shard_work import ShardResult, describe_error

logger = logging.getLogger(__name__)


def part_name(suite: str, part: str) -> str:
    """How a run calls a part."""
    return f"{suite}/{part}"


def parts_folder(url: str, suite: str, plan: EvaluationPlan) -> str:
    return storage.join(url, suite, f"parts-{plan.digest}")


def committed_parts(url: str, suite: str, plan: EvaluationPlan) -> set[str]:
    """Names of the parts that are there."""
    files = storage.list_files(parts_folder(url, suite, plan))
    return {name.removesuffix(".parquet") for name in files if name.endswith(".parquet")}


def read_part(url: str, suite: str, part: str, plan: EvaluationPlan) -> list[Row]:
    data = storage.read_bytes(storage.join(parts_folder(url, suite, plan), f"{part}.parquet"))
    return pq.read_table(io.BytesIO(data)).to_pylist()


def write_part(url: str, suite: str, part: str, plan: EvaluationPlan, rows: list[Row]) -> int:
    """Bytes written."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
    target = storage.join(parts_folder(url, suite, plan), f"{part}.parquet")
    storage.publish_bytes(file.getvalue(), target, exclusive=False)
    return file.tell()


@dataclass(frozen=True)
class EvaluateJob:
    """What every part of a run has in common."""

    entry: ClassVar[str] = "evaluate"
    plan: EvaluationPlan
    output_url: str

    def start_worker(self, *, device: str, num_threads: int) -> PartWorker:
        return PartWorker(self, device=device, num_threads=num_threads)


class PartWorker:
    """Measures parts, one at a time."""

    def __init__(self, job: EvaluateJob, *, device: str, num_threads: int) -> None:
        self._job = job
        if torch.device(device).type == "cpu":
            torch.set_num_threads(max(1, num_threads))
        self._bench = Bench(job.plan, device=device)
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self.activity = Activity(num_lanes=1)

    def __call__(self, url: str, *, max_tries: int) -> ShardResult:
        start = time.monotonic()
        with self.activity.follow(url) as track, self._turn:
            if self._stopping.is_set():
                return ShardResult(url, was_begun=False)
            track.begin()
            try:
                result = self._measure(url, track)
            except Exception as error:
                if not isinstance(error, (OSError, ShardError, UserError)):
                    logger.error("part %s", url, exc_info=error)
                result = ShardResult(url, error=describe_error(error))
        return replace(result, seconds=time.monotonic() - start)

    def stop_taking(self) -> None:
        self._stopping.set()

    def _measure(self, name: str, track: Track) -> ShardResult:
        num_images = 0

        def touch(more: int) -> None:
            nonlocal num_images
            num_images += more
            track.advance(images=more, tokens=0, quarantined=0, share=0.0)

        suite, _, part = name.partition("/")
        self._bench.touch = touch
        with self.activity.encoding():
            rows: list[dict[str, Any]] = SUITES[suite].measure(part, self._bench)
        num_bytes = write_part(self._job.output_url, suite, part, self._job.plan, rows)
        return ShardResult(name, num_images=num_images, bytes_out=num_bytes)
