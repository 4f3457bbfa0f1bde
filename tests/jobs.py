"""Trainings as processes of their own, whose output goes to a file that is watched."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Ray looks for what its workers have reported this often, and every checkpoint waits for it; and it holds back lines
# that are alike for seconds, in which a training may end.
IN_A_HURRY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


@contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, env=os.environ | IN_A_HURRY, stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(
    what: str, log: Path, process: subprocess.Popen[bytes], *, timeout_s: float = 150
) -> re.Match[str]:
    """The first place in the log that `what` matches."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := re.search(what, log.read_text(errors="replace")):
            return found
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.02)
