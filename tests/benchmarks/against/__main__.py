"""`make bench-against REV=…`: this checkout beside another revision of the same repository.

    python -m tests.benchmarks.against REV [SECTION …] [--shards GLOB …] [--rounds N] [--json PATH]

Both sides run in turn, in processes of their own and with this environment's packages; each ratio is the median of
rounds, with the spread. That they do the same is checked first, and what differs is told. A section is a function in
SECTIONS. What is not committed yet counts on this side.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.against.decoding import decoding
from tests.benchmarks.against.drawing import drawing
from tests.benchmarks.against.jobs import start_and_end, whole_job
from tests.benchmarks.against.sides import OURS, Comparison, checkout
from tests.benchmarks.measure import PAIRS, Results

SECTIONS: dict[str, Callable[[Comparison], None]] = {
    "decoding": decoding,
    "drawing": drawing,
    "start": start_and_end,
    "job": whole_job,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.against", description="This checkout beside another revision."
    )
    parser.add_argument("revision", metavar="REV", help="anything that git knows a commit by")
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without"
    )
    parser.add_argument("--shards", help="image shards to decode, a glob; without it the demo's photographs")
    parser.add_argument("--rounds", type=int, default=PAIRS, help="of both sides in turn")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(SECTIONS)}")
    shards = sorted(glob.glob(arguments.shards)) if arguments.shards else []
    if arguments.shards and not shards:
        parser.error(f"--shards {arguments.shards}: nothing is there")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ours / {arguments.revision}")
    results = Results()
    with checkout(arguments.revision) as theirs:
        comparison = Comparison(results, OURS, theirs, arguments.revision, arguments.rounds, shards)
        for name, section in SECTIONS.items():
            if not arguments.sections or name in arguments.sections:
                section(comparison)
    if arguments.json:
        results.write(arguments.json)


if __name__ == "__main__":
    main()
