"""The parts of an evaluation as shards of a run: measured on an actor, each committed as one Parquet file.

<url>/<suite>/parts-<digest of the plan>/<part>.parquet      rows of a part; its arrival is the commit

Parts of another plan lie in another folder, so none is ever mixed in.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tatok_pipe import storage
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites import SUITES, Row
from tatok_pipe.runs.activity import Track
from tatok_pipe.runs.serial_worker import ImageCount, SerialWorker
from tatok_pipe.runs.shard_work import ShardResult


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


class PartWorker(SerialWorker):
    """Measures parts, one at a time."""

    def __init__(self, job: EvaluateJob, *, device: str, num_threads: int) -> None:
        super().__init__()
        self._job = job
        if torch.device(device).type == "cpu":
            torch.set_num_threads(max(1, num_threads))
        self._bench = Bench(job.plan, device=device)

    def do(self, url: str, track: Track) -> ShardResult:
        count = ImageCount(track)
        suite, _, part = url.partition("/")
        self._bench.touch = count.add
        rows: list[dict[str, Any]] = SUITES[suite].measure(part, self._bench)
        num_bytes = write_part(self._job.output_url, suite, part, self._job.plan, rows)
        return ShardResult(url, num_images=count.num_images, bytes_out=num_bytes)
