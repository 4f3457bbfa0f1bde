"""Whole jobs on a store: two at once on one output, one that is killed and started again, and the check of what they
leave.

Inputs and output are in the store. Each raises AssertionError with what the jobs said where a promise is not kept.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.pictures import crop_members, small_tokenizer, write_shard

from .servers import Store, clean_environment

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 6
NUM_IMAGES = 160  # of a shard, so that it takes long enough for a job to be killed in
_TIMEOUT_S = 240

_PUT = """
import sys
from tatok_pipe import storage
from tests.storage.servers import make_bucket
folder, names = sys.argv[1], sys.argv[2:]
make_bucket(folder)
for name in names:
    storage.publish_file(name, storage.join(folder, name.rpartition("/")[2]), exclusive=False)
"""
_LIST = """
import json, sys
from tatok_pipe import storage
print(json.dumps(sorted(storage.list_files(storage.join(sys.argv[1], "data")))))
"""
_KILL_AFTER_A_SHARD = """
import os, signal, sys, time
from tatok_pipe import storage
while not storage.list_files(storage.join(sys.argv[1], "data")):
    os.kill(int(sys.argv[2]), 0)
    time.sleep(0.02)
os.killpg(int(sys.argv[2]), signal.SIGKILL)
"""


class Jobs:
    """Jobs on `store`, whose inputs this puts there; `folder` is for files of its own."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.environment = clean_environment(store) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.folder = folder
        self.checkpoint = small_tokenizer(folder / "tokenizer")
        shards = []
        for number in range(NUM_SHARDS):
            crops = crop_members(4, first=4 * number)
            members = [
                (f"{copy}-{name}", data) for copy in range(NUM_IMAGES // len(crops)) for name, data in crops
            ]
            shards.append(write_shard(folder / f"{number:06d}.tar", members))
        self._python("-c", _PUT, f"{store.url}/in", *shards)

    def two_at_once(self, output: str, *, equal_settings: bool) -> None:
        """Both end well where their settings are equal, else one of them is refused; every shard is there once."""
        settings = ("", "") if equal_settings else ("", "dtf.target_tokens=5")
        jobs = [
            self._start(output, f"{output}-{number}.log", *filter(None, (each,)))
            for number, each in enumerate(settings)
        ]
        try:
            codes = sorted(job.wait(_TIMEOUT_S) for job in jobs)
        finally:
            for job in jobs:
                _kill(job)
        told = "\n".join(self._log(f"{output}-{number}.log") for number in range(2))
        assert codes == ([0, 0] if equal_settings else [0, 3]), told
        self.check_whole(output)

    def kill_and_resume(self, output: str) -> None:
        """A job that is killed after its first shard: the same command does the others alone."""
        job = self._start(output, f"{output}-0.log")
        try:
            self._python("-c", _KILL_AFTER_A_SHARD, f"{self.store.url}/{output}", str(job.pid))
            assert job.wait(_TIMEOUT_S) == -signal.SIGKILL, self._log(f"{output}-0.log")
        finally:
            _kill(job)
        again = self._start(output, f"{output}-1.log")
        try:
            code = again.wait(_TIMEOUT_S)
        finally:
            _kill(again)
        told = self._log(f"{output}-1.log")
        done_before = re.search(r"(\d+) done before", told)
        assert code == 0 and done_before and 0 < int(done_before[1]) < NUM_SHARDS, told
        self.check_whole(output)

    def check_whole(self, output: str) -> None:
        assert len(self.shards(output)) == NUM_SHARDS
        self._python("-m", "tatok_pipe.inspect_tokens", f"input.url={self.store.url}/{output}", "--verify")

    def shards(self, output: str) -> list[str]:
        """The names of the token shards that are committed."""
        return json.loads(self._python("-c", _LIST, f"{self.store.url}/{output}").splitlines()[-1])

    def warnings(self, log: str) -> list[str]:
        """The lines of a job's log that say what its output's store does not promise."""
        return [line for line in self._log(log).splitlines() if "not promised here" in line]

    def _start(self, output: str, log: str, *settings: str) -> subprocess.Popen[bytes]:
        arguments = [f"input.shards={self.store.url}/in/*.tar", f"output.url={self.store.url}/{output}"]
        arguments += [f"tokenizer.checkpoint={self.checkpoint}", "actors.max=1", "actors.cpus=1", *settings]
        with (self.folder / log).open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "tatok_pipe.tokenize_corpus", *arguments],
                env=self.environment, cwd=self.folder, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def _log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def _python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, cwd=self.folder,
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout


def _kill(job: subprocess.Popen[bytes]) -> None:
    """The job and, of its session, whatever Ray has not put into one of its own."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
