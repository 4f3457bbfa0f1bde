"""Two writers of one file at one instant, round after round, in a process of its own.

    python -m tests.storage.race_checks URL_OF_A_FOLDER NUM_ROUNDS

Prints JSON: `broken_promise` as the probe of a run says it, then for each round which of the two writers were told that
they had won and whose content is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tatok_pipe import storage

from .servers import Store, clean_environment, make_bucket

NUM_WRITERS = 2


def race(url: str, contents: list[bytes]) -> list[bool]:
    """The answers of one exclusive publication per content, all started at once."""
    barrier = threading.Barrier(len(contents))

    def write(data: bytes) -> bool:
        barrier.wait()
        return storage.publish_bytes(data, url, exclusive=True)

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(write, contents))


def run(base: str, num_rounds: int) -> dict[str, Any]:
    make_bucket(base)
    contents = [f"writer {number}".encode() * 100 for number in range(NUM_WRITERS)]
    rounds = []
    broken_promise = storage.find_broken_promise(base)
    left = storage.list_files(base)
    for number in range(num_rounds):
        url = storage.join(base, f"{number}.json")
        won = race(url, contents)
        rounds.append({"won": won, "there": contents.index(storage.read_bytes(url))})
    return {"broken_promise": broken_promise, "left_by_probe": left, "rounds": rounds}


def run_alone(store: Store, num_rounds: int) -> dict[str, Any]:
    """What `run` gives, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.race_checks", store.url, str(num_rounds)],
        cwd=Path(__file__).parents[2],
        env=clean_environment(store),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]))))
