"""A run: its device, its time, and what it has found, for people and for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu.device import Busy, Device
from tests.benchmarks.gpu.sizes import Sizes
from tests.benchmarks.measure import Figure, Results, from_pairs

FORMAT = 1  # of the JSON


class Budget:
    """The time of a run, shared out over its parts. A part that is late repeats nothing and leaves out what it can."""

    def __init__(self, total_s: float, *, weights: dict[str, float]) -> None:
        """`weights` of the parts to come, in order."""
        self._end_s = time.monotonic() + total_s
        self._weights = dict(weights)
        self._deadline_s = self._end_s

    @property
    def left_s(self) -> float:
        """Of the whole run."""
        return self._end_s - time.monotonic()

    @property
    def is_late(self) -> bool:
        """Whether the present part has used up its time."""
        return time.monotonic() > self._deadline_s

    def begin(self, part: str) -> None:
        """The part gets its share of the time that is left, whatever those before it took."""
        share = self._weights[part] / sum(self._weights.values())
        del self._weights[part]
        self._deadline_s = time.monotonic() + max(0.0, self.left_s) * share


@dataclass(frozen=True)
class Extra:
    """Something to measure when all parts are done, if there is time for it."""

    rank: int  # the lowest first
    part: str
    name: str
    needs_s: float
    run: Callable[[], None]


class Bench:
    def __init__(self, device: Device, sizes: Sizes, *, budget: Budget) -> None:
        self.device = device
        self.sizes = sizes
        self.budget = budget
        self.results = Results()
        self.ceiling_flops_per_s = float("nan")  # of this device, in this run
        self.bandwidth_bytes_per_s = float("nan")
        self.extras: list[Extra] = []
        self.errors: dict[str, str] = {}  # tracebacks by part
        self.wall_s: dict[str, float] = {}  # by part
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._notes: list[str] = []
        self._part = ""  # that rows and notes belong to

    def begin(self, part: str) -> None:
        """A part that has its share of the time."""
        self.budget.begin(part)
        self.resume(part)

    def resume(self, part: str) -> None:
        self._part = part
        self._rows.setdefault(part, [])

    def repeats(self, *, is_slow: bool = False) -> int:
        """How often to time what comes next; `is_slow` if that takes seconds."""
        if not self.budget.is_late:
            return self.sizes.slow_repeats if is_slow else self.sizes.repeats
        note = f"{self._part}: its time is up, from here on every timing is the only one of its kind"
        if note not in self._notes:
            self.note(note)
        return 1

    def speeds(self, amount: float, function: Callable[[], object]) -> list[float]:
        """Of a function that does `amount` of something, a second, in as many timings as there is time for."""
        side = self.side(amount, function)
        return [side() for _ in range(self.repeats())]

    def side(self, amount: float, function: Callable[[], object]) -> Callable[[], float]:
        return self.device.side(amount, function, seconds=self.sizes.seconds)

    def against(
        self,
        key: str,
        name: str,
        speeds: list[float],
        limit: float,
        *,
        unit: str,
        target: float | None = None,
    ) -> Figure:
        """Speeds beside a number: a limit of the device, or what is asked for."""
        return self.results.add(
            from_pairs(key, name, [(speed, limit) for speed in speeds], unit=unit, target=target)
        )

    def utilisation(
        self, key: str, name: str, speeds: list[float], *, flops: float, target: float | None = None
    ) -> Figure:
        """Speeds of something that takes `flops`, beside the best matrix product of this run."""
        return self.against(
            key, name, [speed * flops / 1e12 for speed in speeds], self.ceiling_flops_per_s / 1e12,
            unit="TFLOP/s", target=target,
        )  # fmt: skip

    def compare(
        self,
        key: str,
        name: str,
        ours: Callable[[], float],
        other: Callable[[], float],
        *,
        unit: str,
        target: float | None = None,
        is_slow: bool = False,
    ) -> Figure:
        pairs = self.repeats(is_slow=is_slow)
        return self.results.compare(key, name, ours, other, unit=unit, pairs=pairs, target=target)

    def row(self, what: str, **values: Any) -> None:
        """Something that is no comparison; printed, and kept for machines."""
        self._rows[self._part].append({"what": what, **values})
        shown = ", ".join(f"{name} {_show(value)}" for name, value in values.items())
        self.results.note(f"{self._part}, {what}: {shown}")

    def busy(self, what: str, function: Callable[[], object]) -> Busy:
        """Measure and tell how busy `function` keeps the device."""
        found = self.device.busy(function)
        self.row(f"busy, {what}", **found.as_dict())
        return found

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.results.note(text)

    def later(self, name: str, run: Callable[[], None], *, needs_s: float, rank: int) -> None:
        """Run it after all parts if there are `needs_s` left then."""
        self.extras.append(Extra(rank, self._part, name, needs_s, run))

    def write(self, path: Path) -> None:
        """All there is so far; a run that is killed leaves what it had."""
        device = self.device
        found = {
            "format": FORMAT,
            "device": {"name": device.name, "memory_gib": device.memory_gib},
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
            "ceiling_flops_per_s": self.ceiling_flops_per_s,
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s,
            "sizes": asdict(self.sizes),
            "figures": [asdict(figure) for figure in self.results.figures],
            "rows": self._rows,
            "notes": self._notes,
            "errors": self.errors,
            "wall_s": self.wall_s,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_show(each)}" for name, each in value.items())
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
