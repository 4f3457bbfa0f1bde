"""Why fewer tokens are faster, and by how much: steps an image × seconds a step, of the generator `b` at lengths of the
paper (TaTok, arXiv 2605.16384, which tells of 8.7 times faster generation at 56 tokens).

    python -m tests.benchmarks.lengths [--slots 16] [--rounds 3]

*adaptive* draws 16 globals and 40 of 256 patches, and where they lie. Beside it grids of 256 and of 576 patches without
globals, once by our sampler and once by a loop of fixed length as LlamaGen has it (`generation.FixedLoop`), all as many
images at once, with random weights, on one thread. All sides run in turn. A grid of 576 is what a tokenizer with
16 px patches makes of 384 px, so that a ratio to it compares images of two sizes, as the paper's does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, Place
from tatok_pipe.ar.sampler import Sampler
from tests.benchmarks.generation import DEVICE, DTYPE, FixedLoop

_GLOBALS, _KEPT = 16, 40
_GRIDS = (256, 576)
_CODES = {"global_vocab": 2048, "patch_vocab": 16_384}
_PAPER = 8.7


@dataclass(frozen=True)
class Side:
    """`batch_s` draws a batch of images once, and says in how many seconds."""

    name: str
    tokens: int
    batch_s: Callable[[], float]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--slots", type=int, default=16, help="images that are drawn at once")
    parser.add_argument("--rounds", type=int, default=3, help="of all sides in turn")
    options = parser.parse_args()
    if DEVICE == "cpu":
        torch.set_num_threads(1)
    sides = make_sides(GeneratorConfig(num_classes=1000), slots=options.slots)
    rounds = [[side.batch_s() for side in sides] for _ in range(options.rounds)]
    print_table(sides, np.array(rounds), slots=options.slots)
    return 0


def make_sides(config: GeneratorConfig, *, slots: int) -> list[Side]:
    torch.manual_seed(0)
    adaptive = Generator(config, Vocabulary(_GLOBALS, _GRIDS[0], **_CODES)).eval().to(DEVICE)
    places = np.full(_GRIDS[0], int(Place.ABSENT))
    places[np.random.default_rng(0).permutation(_GRIDS[0])[:_KEPT]] = int(Place.DRAWN)
    sides = [Side("adaptive", _GLOBALS + _KEPT, _sampling(adaptive, places, slots=slots))]
    for count in _GRIDS:
        torch.manual_seed(0)
        grid = Generator(config, Vocabulary(0, count, **_CODES)).eval().to(DEVICE)
        everywhere = np.full(count, int(Place.DRAWN))
        sides.append(Side(f"grid of {count}, our sampler", count, _sampling(grid, everywhere, slots=slots)))
        loop = FixedLoop(grid, batch=slots)
        sides.append(Side(f"grid of {count}, a fixed loop", count, _looping(loop, slots=slots)))
    return sides


def _sampling(model: Generator, places: np.ndarray, *, slots: int) -> Callable[[], float]:
    sampler = Sampler(model, SamplingConfig(), num_slots=slots, dtype=DTYPE)

    def batch_s() -> float:
        requests = [ImageRequest(number, seed=number, label=0, patches=places) for number in range(slots)]
        start = time.perf_counter()
        for _ in sampler.sample(requests):
            pass
        return time.perf_counter() - start

    return batch_s


def _looping(loop: FixedLoop, *, slots: int) -> Callable[[], float]:
    return lambda: slots / loop.images_per_s()


def print_table(sides: list[Side], seconds: np.ndarray, *, slots: int) -> None:
    """`seconds` of a batch are (rounds, sides)."""
    print(
        f"\n| {slots} at once | tokens | ms a step | images/s | steps × step time, times adaptive (spread) |"
    )
    print("|---|---|---|---|---|")
    for place, side in enumerate(sides):
        batch_s, ratios = statistics.median(seconds[:, place]), seconds[:, place] / seconds[:, 0]
        step_s = seconds[:, place] / side.tokens
        told = "1"
        if place:
            steps = side.tokens / sides[0].tokens
            each = statistics.median(ratios)
            told = f"{steps:.2f} × {each / steps:.2f} = {each:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(
            f"| {side.name} | {side.tokens} | {1e3 * statistics.median(step_s):.1f} | {slots / batch_s:.2f} | {told} |"
        )
    print(f"\nThe paper tells of {_PAPER} times.")


if __name__ == "__main__":
    raise SystemExit(main())
