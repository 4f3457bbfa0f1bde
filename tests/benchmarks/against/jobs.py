"""The command tokenize_corpus on both sides in turn, each with its own packaged weights and an embedded Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tatok_pipe.images.demo import write_demo_corpus
from tests.benchmarks.against.sides import Comparison, side_environment
from tests.benchmarks.measure import from_pairs
from tests.benchmarks.pictures import make_photographs, write_shards

_FEW = 3
_CROPS = 48  # of each picture of the demo corpus: half a minute a side
NUM_CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Done:
    """One run of the command."""

    wall_s: float  # from before it is started to after it has ended
    images_per_s: float  # by its own clock, from the first shard begun to the last one committed
    num_images: int


def start_and_end(comparison: Comparison) -> None:
    """Of a job with so little to do that it is nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder, "shards"), make_photographs()[:_FEW], num_shards=1, copies=1)
        rounds = _run_rounds(comparison, Path(folder, "shards"), expected=_FEW)
    comparison.results.add(
        from_pairs(
            "job/start_and_end", f"jobs of {_FEW} images / {comparison.revision}",
            [(60 / ours.wall_s, 60 / theirs.wall_s) for ours, theirs in rounds], unit="jobs a minute",
        )
    )  # fmt: skip
    for name, place in (("this", 0), (comparison.revision, 1)):
        seconds = sorted(pair[place].wall_s for pair in rounds)
        comparison.results.note(
            f"{name}: {seconds[len(seconds) // 2]:.1f} s ({seconds[0]:.1f} … {seconds[-1]:.1f})"
        )


def whole_job(comparison: Comparison) -> None:
    """The packaged tokenizer on the demo corpus, all cores."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_demo_corpus(Path(folder, "corpus"), num_shards=NUM_CPUS, crops_per_source=_CROPS)
        rounds = _run_rounds(comparison, Path(folder, "corpus"), expected=corpus.num_images)
    comparison.results.add(
        from_pairs(
            "job/whole", f"whole job, its own packaged tokenizer / {comparison.revision}",
            [(ours.images_per_s, theirs.images_per_s) for ours, theirs in rounds], unit="images/s",
        )
    )  # fmt: skip


def _run_rounds(comparison: Comparison, shards: Path, *, expected: int) -> list[tuple[Done, Done]]:
    sides = comparison.ours, comparison.theirs
    for root in sides:  # files into the page cache
        _run(root, shards, expected)
    return [
        (_run(comparison.ours, shards, expected), _run(comparison.theirs, shards, expected))
        for _ in range(comparison.rounds)
    ]


def _run(root: Path, shards: Path, expected: int) -> Done:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        output = Path(folder, "out")
        command = [
            sys.executable,
            "-m",
            "tatok_pipe.tokenize_corpus",
            f"input.shards={shards}",
            f"output.url={output}",
        ]
        start = time.monotonic()
        code = subprocess.call(
            command, cwd=root, env=os.environ | side_environment(root), stdout=log, stderr=log
        )
        wall_s = time.monotonic() - start
        if code:
            log.seek(0)
            raise SystemExit(log.read())
        summary = json.loads((output / "_summary.json").read_text())
    num_images = summary["statistics"]["num_images"]
    if num_images != expected:
        raise SystemExit(f"{root}: {num_images} rows of {expected} images")
    return Done(wall_s, summary["run"]["images_per_s"], num_images)
