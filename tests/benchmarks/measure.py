"""Two sides in turn: the figure that comes of it, the table, and the ratios that are watched.

A machine's speed changes while it is measured, so what is said of two sides is the median of the ratios of pairs that
were run one right after the other, with their spread.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

PAIRS = 5
MAX_FALL = 0.15  # of a watched ratio, before `make bench-check` fails
_WIDTH = 66


@dataclass(frozen=True)
class Figure:
    """What one comparison gave. `ours` and `other` in `unit`; more `ratio` is better: ours / other, or of what should
    be small other / ours."""

    key: str  # the same for ever: what baseline.json knows it by
    name: str
    unit: str
    ours: float
    other: float
    ratio: float
    ratio_min: float
    ratio_max: float
    target: float | None = None  # of the ratio

    @property
    def meets_target(self) -> bool:
        return self.target is None or self.ratio >= self.target


class Results:
    """The figures of a run, printed as they come."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        print(f"{'':>{_WIDTH}} {'ours':>10} {'other':>10} {'ratio':>6} {'(min … max)':>15} {'target':>7}")

    def add(self, figure: Figure) -> Figure:
        self.figures.append(figure)
        spread = f"({figure.ratio_min:.2f} … {figure.ratio_max:.2f})"
        target = "" if figure.target is None else f"{figure.target:g}{' ok' if figure.meets_target else ' !'}"
        print(
            f"{f'{figure.name}, {figure.unit}':>{_WIDTH}} {_show(figure.ours):>10} {_show(figure.other):>10} "
            f"{figure.ratio:6.2f} {spread:>15} {target:>7}",
            flush=True,
        )
        return figure

    def compare(
        self,
        key: str,
        name: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        *,
        unit: str,
        pairs: int = PAIRS,
        target: float | None = None,
    ) -> Figure:
        """Both sides give their own speed, in `unit`, each time they are called. Warm them up before."""
        speeds = [(ours(), other()) for _ in range(pairs)]
        return self.add(from_pairs(key, name, speeds, unit=unit, target=target))

    def limit(self, key: str, name: str, measured: float, limit: float, *, unit: str) -> Figure:
        """Of what should be small: the ratio says how many times it would fit into its limit."""
        ratio = limit / measured
        return self.add(
            Figure(key, f"{name}, of at most", unit, measured, limit, ratio, ratio, ratio, target=1.0)
        )

    def note(self, text: str) -> None:
        """What a reader of the table wants to know besides."""
        print(f"{'':>4}{text}", flush=True)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(figure) for figure in self.figures], indent=1) + "\n")


def from_pairs(
    key: str, name: str, speeds: list[tuple[float, float]], *, unit: str, target: float | None = None
) -> Figure:
    """Of speeds (ours, other), measured pair by pair."""
    ratios = [ours / other for ours, other in speeds]
    return Figure(
        key=key,
        name=name,
        unit=unit,
        ours=statistics.median(ours for ours, _ in speeds),
        other=statistics.median(other for _, other in speeds),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        target=target,
    )


def timed(amount: float, function: Callable[[], object]) -> Callable[[], float]:
    """A side that does `amount` of something: each call does it and gives the amount a second."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return amount / (time.perf_counter() - start)

    return run


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """With these variables, and as it was afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def find_falls(figures: list[Figure], baseline: dict[str, float]) -> list[str]:
    """Lines about watched ratios that fell by more than MAX_FALL, or that nobody measured."""
    found = {figure.key: figure for figure in figures}
    lines = []
    for key, expected in sorted(baseline.items()):
        if key not in found:
            lines.append(f"{key}: not measured; the baseline has {expected:.2f}")
        elif (ratio := found[key].ratio) < expected * (1 - MAX_FALL):
            lines.append(
                f"{key}: {ratio:.2f}, {1 - ratio / expected:.0%} below the baseline's {expected:.2f}"
            )
    return lines


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
