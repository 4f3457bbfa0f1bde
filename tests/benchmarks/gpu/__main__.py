"""How fast the parts are on one GPU, each beside what bounds it or what a user would run.

    python -m tests.benchmarks.gpu [--json PATH] [--parts encode,train,sample,script] [--minutes 8]

Needs torch and numpy, and nothing else that this package does. A part that fails is told with its traceback, the
others run, and the exit code is 1; without a GPU it is 2. `--tiny-cpu` runs all of it on toys on a CPU: what comes of
it are no figures, but every line has run.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tatok_pipe.ar.throughput import Ceiling
from tests.benchmarks.gpu import encode, sample, script, train
from tests.benchmarks.gpu.bench import Bench, Budget
from tests.benchmarks.gpu.device import Device, copy_bytes_per_s, matmul_flops_per_s
from tests.benchmarks.gpu.sizes import FULL, TINY

PARTS = {"encode": encode.run, "train": train.run, "sample": sample.run, "script": script.run}
_EXTRAS = "extras"
# Shares of the time that is left when a part begins, among those still to come.
_WEIGHTS = {"ceiling": 0.3, "encode": 3.0, "train": 4.0, "sample": 2.0, "script": 0.7, _EXTRAS: 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description="Speed on one GPU.")
    parser.add_argument("--json", type=Path, help="write what was found there, after every part")
    parser.add_argument("--parts", default=",".join(PARTS), help="of them, with commas; default: %(default)s")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="then nothing is repeated any more; default: %(default)g"
    )
    parser.add_argument("--tiny-cpu", action="store_true", help="toys on a CPU, to see that it runs")
    arguments = parser.parse_args()
    parts = [part for part in arguments.parts.split(",") if part]
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts {','.join(unknown)}: expected some of {','.join(PARTS)}")
    if not arguments.tiny_cpu and not torch.cuda.is_available():
        print("tests.benchmarks.gpu: no CUDA device; --tiny-cpu runs toys on a CPU", file=sys.stderr)
        return 2
    if arguments.tiny_cpu:  # functions are traced, but not translated, which takes minutes
        torch.compiler.set_stance("default", force_backend="eager")
    device = Device(torch.device("cpu" if arguments.tiny_cpu else "cuda:0"))
    weights = {part: _WEIGHTS[part] for part in ("ceiling", *parts, _EXTRAS)}
    memory = "" if device.memory_gib is None else f", {device.memory_gib:.0f} GiB"
    print(f"{device.name}{memory}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    bench = Bench(
        device,
        TINY if arguments.tiny_cpu else FULL,
        budget=Budget(60 * arguments.minutes, weights=weights),
    )
    start = time.monotonic()
    for part in ("ceiling", *parts, _EXTRAS):
        bench.begin(part)
        if part == _EXTRAS:
            run_extras(bench)
        else:
            guarded(bench, part, measure_ceiling if part == "ceiling" else PARTS[part])
        device.release()
        if arguments.json:
            bench.write(arguments.json)
    missed = [figure.key for figure in bench.results.figures if not figure.meets_target]
    print(f"in {time.monotonic() - start:.0f} s; targets missed: {', '.join(missed) or 'none'}")
    for part in bench.errors:
        print(f"{part}: failed, see above", file=sys.stderr)
    return 1 if bench.errors else 0


def measure_ceiling(bench: Bench) -> None:
    """What everything else is measured against."""
    device, sizes = bench.device, bench.sizes
    speeds = {}
    for side in sizes.matmul_sides:
        speeds[side] = matmul_flops_per_s(device, side, seconds=sizes.seconds)
        bench.row(f"bf16 matrix product of {side}", tflop_per_s=speeds[side] / 1e12)
    bench.ceiling_flops_per_s = max(speeds.values())
    bench.bandwidth_bytes_per_s = copy_bytes_per_s(device, sizes.copy_bytes, seconds=sizes.seconds)
    bench.row("copy within memory", gb_per_s=bench.bandwidth_bytes_per_s / 1e9)
    told = Ceiling(device.device, precision="bf16").flops_per_s()
    bench.against(
        "ceiling/matmul", "best bf16 matrix product / what trainings log utilisation by",
        [bench.ceiling_flops_per_s / 1e12], told / 1e12, unit="TFLOP/s",
    )  # fmt: skip


def run_extras(bench: Bench) -> None:
    """What takes long to compile, as far as there is time."""
    for extra in sorted(bench.extras, key=lambda extra: extra.rank):
        bench.resume(extra.part)
        if bench.budget.left_s < extra.needs_s:
            bench.note(f"{extra.part}: no time for {extra.name}, which may take {extra.needs_s:.0f} s")
            continue
        guarded(bench, f"{extra.part}, {extra.name}", lambda bench, extra=extra: extra.run())
        bench.device.release()
    bench.extras.clear()


def guarded(bench: Bench, name: str, run: Callable[[Bench], None]) -> None:
    """An error is kept and told, and ends nothing else."""
    start = time.monotonic()
    try:
        run(bench)
    except Exception:
        bench.errors[name] = traceback.format_exc()
        print(f"{name} failed:\n{bench.errors[name]}", file=sys.stderr, flush=True)
    bench.wall_s[name] = time.monotonic() - start


if __name__ == "__main__":
    raise SystemExit(main())
