"""The worker of the study's own parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from tatok_pipe.commands.study import of_generators, of_images
from tatok_pipe.commands.study.design import Part
from tatok_pipe.commands.study.results import Result, write_result
from tatok_pipe.commands.study.workshop import Networks, Workshop
from tatok_pipe.runs.activity import Track
from tatok_pipe.runs.serial_worker import ImageCount, SerialWorker
from tatok_pipe.runs.shard_work import ShardResult
from tatok_pipe.storage import ShardFile

_MAKERS: dict[str, Callable[[Workshop], Result]] = {
    "classifier": of_images.train,
    "real": of_images.look_at_real,
    "step_time": of_generators.time_steps,
    "draw": of_generators.draw,
    "likeness": of_images.compare_drawn,
    "reconstruction": of_images.compare_decoded,
    "nats": of_generators.score,
}


@dataclass(frozen=True)
class StudyJob:
    """What the parts of a run have in common. `parts` are those that may be asked for, by id."""

    entry: ClassVar[str] = "study"
    url: str
    train: tuple[ShardFile, ...]
    test: tuple[ShardFile, ...]
    parts: dict[str, Part]

    def start_worker(self, *, device: str, num_threads: int) -> StudyWorker:
        return StudyWorker(self, device=device, num_threads=num_threads)


class StudyWorker(SerialWorker):
    """Makes parts, one at a time."""

    def __init__(self, job: StudyJob, *, device: str, num_threads: int) -> None:
        super().__init__()
        self._job = job
        self._device = torch.device(device)
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, num_threads))
        self._networks = Networks(job.url, self._device)

    def do(self, url: str, track: Track) -> ShardResult:
        count = ImageCount(track)
        job, part, start = self._job, self._job.parts[url], time.monotonic()
        workshop = Workshop(part, job.url, self._device, self._networks, job.train, job.test, count.add)
        result = _MAKERS[part.kind](workshop)
        seconds = {"whole": time.monotonic() - start} | result.seconds
        write_result(job.url, part, Result(result.figures, seconds))
        return ShardResult(url, num_images=count.num_images)
