"""Plots by matplotlib, as SVG and PNG. The same plot gives the same bytes with the same matplotlib."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from tatok_pipe.evaluation.findings import Plot

# Wong 2011, colours that the colour-blind tell apart; with them the dashes of lines change.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "os^Dvx+*"
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tatok_pipe",
    "svg.fonttype": "path",
}
# As wide as a phone shows it without making its letters small.
_INCHES = (4.6, 3.5)
_MAX_LINES_WITH_MARKERS = 30


def render(plot: Plot, *, image_format: str) -> bytes:
    """The plot as "svg" or "png"."""
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=_INCHES, layout="constrained")
        FigureCanvasAgg(canvas)
        _draw(plot, canvas)
        file = io.BytesIO()
        # Without the date, which would be another one each time.
        metadata = {"Date": None, "Creator": None} if image_format == "svg" else {"Software": None}
        canvas.savefig(file, format=image_format, dpi=150, metadata=metadata)
    return file.getvalue()


def _draw(plot: Plot, canvas: Canvas) -> None:
    axes = canvas.add_subplot()
    bars = [series for series in plot.series if series.kind == "bars"]
    for place, series in enumerate(plot.series):
        colour = _COLOURS[place % len(_COLOURS)]
        marker = _MARKERS[place % len(_MARKERS)]
        centres = series.x
        if series.kind == "bars":
            width = _bar_width(series.x) / max(1, len(bars))
            shift = (bars.index(series) - (len(bars) - 1) / 2) * width
            centres = [x + shift for x in series.x]
            axes.bar(centres, series.y, width, color=colour, label=series.label)
        elif series.kind == "points":
            axes.plot(
                series.x, series.y, linestyle="none", marker=marker, markersize=3.5, alpha=0.65,
                color=colour, label=series.label,
            )  # fmt: skip
        else:
            axes.plot(
                series.x, series.y, linestyle=_DASHES[place // len(_COLOURS) % len(_DASHES)], color=colour,
                marker=marker if len(series.x) <= _MAX_LINES_WITH_MARKERS else "", markersize=3.5,
                linewidth=1.5, label=series.label,
            )  # fmt: skip
        if series.low is not None and series.high is not None:
            if series.kind == "line":
                axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
            else:
                below = [y - low for y, low in zip(series.y, series.low, strict=True)]
                above = [high - y for y, high in zip(series.y, series.high, strict=True)]
                axes.errorbar(centres, series.y, yerr=[below, above], fmt="none", ecolor="#444444", capsize=2)
    if plot.is_log_x:
        axes.set_xscale("log")
    if plot.is_log_y:
        axes.set_yscale("log")
    if plot.has_diagonal:
        ends = [*axes.get_xlim(), *axes.get_ylim()]
        axes.axline((min(ends), min(ends)), slope=1, color="#888888", linewidth=0.8, linestyle=":")
    if plot.x_labels:
        axes.set_xticks(range(len(plot.x_labels)), plot.x_labels, rotation=20, ha="right", fontsize=7.5)
    axes.set_xlabel(plot.x_title)
    axes.set_ylabel(plot.y_title)
    axes.set_title(f"{plot.title}\n{plot.n}", fontsize=9, loc="left")
    if len(plot.series) > 1 and bars:
        canvas.legend(
            loc="outside lower center", ncols=2, fontsize=7.5, frameon=False
        )  # bars leave no corner free
    elif len(plot.series) > 1:
        axes.legend(fontsize=7.5, framealpha=0.8)


def _bar_width(x: Any) -> float:
    steps = [right - left for left, right in zip(sorted(x), sorted(x)[1:], strict=False)]
    return 0.8 * min(steps, default=1.0)
