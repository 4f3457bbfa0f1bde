"""Two checkouts as sides of a comparison: a git worktree of the other revision, programs that both run, and rounds in
turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Results

OURS = Path(__file__).parents[3]
_WORKERS = Path(__file__).with_name("workers")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass(frozen=True)
class Comparison:
    """What a section is given."""

    results: Results
    ours: Path  # the top of this checkout
    theirs: Path  # of the other one
    revision: str  # its name
    rounds: int
    shards: list[str]  # image shards that the user gave; none: the demo's photographs


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The files of a revision, as a git worktree in a temporary folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="tatok-against-") as folder:
        path = Path(folder, "checkout")
        _git("worktree", "add", "--quiet", "--detach", str(path), revision)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=OURS, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")


def side_environment(root: Path) -> dict[str, str]:
    """So that a Python process has the package of this checkout."""
    return {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


class Worker:
    """A program of `workers/` in a process of its own, with the package of one side."""

    def __init__(self, program: str, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKERS / f"{program}.py")],
            cwd=root,
            env=os.environ | ONE_THREAD | side_environment(root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """What a function of the program gives."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": do, "with": arguments}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker of {do} ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def workers(*programs: tuple[str, Path]) -> Iterator[list[Worker]]:
    """One process each; all ended afterwards."""
    started = [Worker(program, root) for program, root in programs]
    try:
        yield started
    finally:
        for worker in started:
            worker.close()
