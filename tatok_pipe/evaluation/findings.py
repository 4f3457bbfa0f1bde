"""What a suite found: figures, tables, plots as data, pictures. The same findings give the same JSON.

Nothing in here may depend on the clock, on the number of actors or on the order in which they finished.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tatok_pipe.evaluation.statistics import Interval

FORMAT = 1
_DIGITS = 7  # of a stored number: below them two machines, or thread counts, may differ

Cell = str | int | float | None


@dataclass(frozen=True)
class Figure:
    """One number with its name; `low` and `high` are its interval, where there is one."""

    name: str
    value: float
    unit: str = ""
    n: int = 0
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, name: str, interval: Interval, unit: str = "") -> Figure:
        return cls(name, interval.value, unit, interval.n, interval.low, interval.high)


@dataclass(frozen=True)
class Table:
    """`name` is that of its CSV file; `note` says what the columns mean where their titles do not."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line, set of points or set of bars. `low` and `high` are intervals of y."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    kind: str = "line"  # "line", "points" or "bars"


@dataclass(frozen=True)
class Plot:
    """Axes carry their units; `n` says what the values are of ("n = 200 images")."""

    name: str
    title: str
    x_title: str
    y_title: str
    n: str
    series: Sequence[Series]
    caption: str = ""
    is_log_x: bool = False
    is_log_y: bool = False
    has_diagonal: bool = False  # the line y = x, for calibration
    x_labels: Sequence[str] = ()  # of the places 0, 1, ... on the x axis, instead of numbers


@dataclass(frozen=True)
class Pane:
    """One picture of an exhibit, (S, S, 3) uint8."""

    label: str
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Exhibit:
    caption: str
    panes: Sequence[Pane]


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str
    exhibits: Sequence[Exhibit]


@dataclass(frozen=True)
class Findings:
    """`verdicts` are sentences: what the figures mean, first in the report. `images` are the values of each image,
    written as CSV and not into the JSON."""

    suite: str
    title: str
    verdicts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    galleries: Sequence[Gallery] = ()
    images: Table | None = None


@dataclass(frozen=True)
class Provenance:
    """Where findings are from. `settings` is all that decides them."""

    command: str  # without secrets
    version: str
    tokenizer: str  # fingerprint
    seed: int
    settings: dict[str, Any]


def to_json(findings: Findings, provenance: Provenance) -> str:
    """results.json. Pictures and values of single images are not in it."""
    content = {
        "format": FORMAT,
        "suite": findings.suite,
        "title": findings.title,
        **asdict(provenance),
        "verdicts": list(findings.verdicts),
        "figures": {figure.name: _without(asdict(figure), "name") for figure in findings.figures},
        "tables": {table.name: _without(asdict(table), "name") for table in findings.tables},
        "plots": {plot.name: _without(asdict(plot), "name") for plot in findings.plots},
    }
    return json.dumps(_plain(content), indent=1, sort_keys=True, allow_nan=False) + "\n"


def plots_from_json(content: dict[str, Any]) -> list[Plot]:
    """The plots of a results.json. Raises KeyError, TypeError where it is none."""
    return [
        Plot(
            name=name,
            **{key: value for key, value in plot.items() if key != "series"},
            series=[Series(**each) for each in plot["series"]],
        )
        for name, plot in content["plots"].items()
    ]


def figures_from_json(content: dict[str, Any]) -> list[Figure]:
    """The figures of a results.json. Raises KeyError, TypeError where it is none."""
    return [Figure(name=name, **figure) for name, figure in content["figures"].items()]


def to_csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if cell is None else _plain(cell) for cell in row] for row in table.rows])
    return file.getvalue()


def _without(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def _plain(value: Any) -> Any:
    """JSON types; numbers to `_DIGITS` digits, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
