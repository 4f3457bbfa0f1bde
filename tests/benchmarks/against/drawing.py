"""Drawing images, one thread: the same generator, requests and seeds on both sides, in turn."""

from __future__ import annotations

from tests.benchmarks.against.sides import Comparison, workers
from tests.benchmarks.measure import from_pairs

SLOTS = (1, 16)
_SECONDS = 3.0
_CHECKED = 24  # images whose tokens are compared
_LEAST_SHARE = 0.99  # of codes that have to be the same: rounding moves a draw now and then


def drawing(comparison: Comparison) -> None:
    with workers(("draw", comparison.ours), ("draw", comparison.theirs)) as sides:
        for num_slots in SLOTS:
            ours, theirs = (side.ask("tokens", num_slots=num_slots, num_images=_CHECKED) for side in sides)
            _check_tokens(comparison, ours, theirs, num_slots)
            rounds = [
                [side.ask("elements_per_s", num_slots=num_slots, seconds=_SECONDS) for side in sides]
                for _ in range(comparison.rounds)
            ]
            comparison.results.add(
                from_pairs(
                    f"draw/{num_slots}", f"drawing, {num_slots} slots, one thread / {comparison.revision}",
                    [(ours, theirs) for ours, theirs in rounds], unit="elements/s of CPU time",
                )
            )  # fmt: skip


def _check_tokens(
    comparison: Comparison, ours: list[list[int]], theirs: list[list[int]], num_slots: int
) -> None:
    if [*map(len, ours)] != [*map(len, theirs)]:
        raise SystemExit(f"{num_slots} slots: the sides draw images of different lengths")
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    share = sum(a == b for a, b in pairs) / len(pairs)
    comparison.results.note(f"{num_slots} slots: {share:.4f} of {len(pairs)} codes are the same")
    if share < _LEAST_SHARE:
        raise SystemExit("the sides draw different images")
