"""`make bench`: how fast the parts are on this machine's CPUs, each beside what bounds it or what a user would run.

    python -m tests.benchmarks [PART …] [--json PATH] [--check | --write-baseline]

`--check` compares the ratios with those of baseline.json and leaves with 1 where one fell by more than 15 %;
`--write-baseline` makes this run's ratios the ones to compare with. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from tatok_pipe.runs.progress import format_duration
from tests.benchmarks import generation, loader, packing, peers_bench, stages, streaming, training, whole_job
from tests.benchmarks.measure import MAX_FALL, Results, find_falls

PARTS = {
    "stages": stages,
    "streaming": streaming,
    "whole_job": whole_job,
    "peers": peers_bench,
    "packing": packing,
    "loader": loader,
    "training": training,
    "generation": generation,
}
BASELINE = Path(__file__).with_name("baseline.json")
# Two runs of them differ by more than a fall that would mean something, or it takes another Python to measure them.
UNWATCHED = {
    "loader/columns", "loader/litdata", "peers/model/daft", "peers/model/litdata", "peers/model/ray_data",
    "peers/null/daft", "peers/null/litdata", "peers/null/script", "stream/ranges",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Speed on this machine's CPUs."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--json", type=Path, help="write the figures there")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--check", action="store_true", help="leave with 1 where a ratio fell")
    end.add_argument("--write-baseline", action="store_true", help="compare with this run from now on")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    chosen = {name: part for name, part in PARTS.items() if not arguments.parts or name in arguments.parts}
    start = time.monotonic()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = Results()
    for name, part in chosen.items():
        began = time.monotonic()
        part.run(results)
        results.note(f"{name}: {format_duration(time.monotonic() - began)}")
    print(f"in {format_duration(time.monotonic() - start)}")
    if arguments.json:
        results.write(arguments.json)
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if arguments.write_baseline:
        baseline = (baseline if arguments.parts else {}) | {
            figure.key: round(figure.ratio, 3) for figure in results.figures if figure.key not in UNWATCHED
        }
        BASELINE.write_text(json.dumps(baseline, indent=1, sort_keys=True) + "\n")
    if arguments.check:
        measured = {figure.key.partition("/")[0] for figure in results.figures}
        falls = find_falls(
            results.figures,
            {key: ratio for key, ratio in baseline.items() if key.partition("/")[0] in measured},
        )
        for line in falls:
            print(line)
        print(f"{len(falls)} of {len(baseline)} ratios fell by more than {MAX_FALL:.0%}")
        return 1 if falls else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
