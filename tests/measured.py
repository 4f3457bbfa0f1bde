"""Tokenizing shards in a process of its own whose memory is measured: nothing of the test's process counts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tatok_pipe.encoding import shard_tokenizer
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer

from .pictures import crop_members, write_shard
from .test_shard_tokenizer import make_job

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """What became of one shard."""

    error: str
    num_images: int
    num_quarantined: int
    peak_bytes: int  # the most that the process held until then


def tokenize_measured(
    shards: Sequence[str],
    *,
    checkpoint: str,
    output: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Tokenize `shards` one after the other into `output`; the first outcome is that of one small shard more,
    which loads libraries and starts threads. A process that dies fails the test."""
    arguments = json.dumps([list(shards), checkpoint, str(output)])
    run = subprocess.run(
        # A new program and not a fork: a fork's peak begins with its parent's.
        [sys.executable, "-m", "tests.measured", arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(environment or {}),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-4000:]}"
    return [Outcome(*values) for values in json.loads(run.stdout.splitlines()[-1])]


def main(arguments: str) -> None:
    shards, checkpoint, output = json.loads(arguments)
    setattr(shard_tokenizer, "_FIRST_PAUSE_S", 0.0)  # noqa: B010 - damaged files do not heal while one waits
    tokenize = ShardTokenizer(make_job(checkpoint, Path(output)), device="cpu", num_threads=2)
    outcomes = []
    for url in [write_shard(Path(output) / "first.tar", crop_members(8)), *shards]:
        result = tokenize(url)
        outcomes.append((result.error, result.num_images, result.num_quarantined, read_status("VmHWM")))
    print(json.dumps(outcomes))


def read_status(field: str) -> int:
    """A line of this process's memory figures, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


if __name__ == "__main__":
    main(sys.argv[1])
