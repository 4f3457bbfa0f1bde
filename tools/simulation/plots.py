"""The figure of a sweep: time, cost, where paid time goes, the tail. The same rows give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from tools.simulation.ledger import Part
from tools.simulation.options import SimulateCorpusConfig
from tools.simulation.sweep import Row, Spread

# Wong 2011, colours that the colour-blind tell apart.
_BLUE, _RED, _GREY = "#0072b2", "#d55e00", "#888888"
_PART_COLOURS = {
    Part.USEFUL: "#0072b2",
    Part.SLOWER: "#56b4e9",
    Part.STARTING: "#e69f00",
    Part.PREEMPTED: "#d55e00",
    Part.FAILED: "#000000",
    Part.WAITING: "#cc79a7",
    Part.TAIL: "#009e73",
}
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tatok_pipe",
    "svg.fonttype": "path",
}


def render(rows: Sequence[Row], config: SimulateCorpusConfig, *, image_format: str) -> bytes:
    """The figure as "svg" or "png"."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 6.8), layout="constrained")
        FigureCanvasAgg(figure)
        ((time, cost), (parts, tail)) = figure.subplots(2, 2)
        _draw_time(time, rows, config)
        _draw_cost(cost, rows)
        _draw_parts(parts, rows)
        _draw_tail(tail, rows)
        corpus, seeds = config.corpus, config.num_seeds
        figure.suptitle(
            f"{corpus.num_images:,} images in {corpus.num_shards:,} shards, simulated; "
            f"{config.actor.images_per_s:,.0f} images/s a worker are assumed; median and range of {seeds} "
            f"seed{'s' * (seeds > 1)}",
            fontsize=9,
        )
        file = io.BytesIO()
        # Without the date, which would be another one each time.
        metadata = {"Date": None, "Creator": None} if image_format == "svg" else {"Software": None}
        figure.savefig(file, format=image_format, dpi=130, metadata=metadata)
    return file.getvalue()


def _draw_time(axes: Axes, rows: Sequence[Row], config: SimulateCorpusConfig) -> None:
    workers = [row.num_workers for row in rows]
    _draw_line(axes, workers, [row.wall_h for row in rows], colour=_BLUE, label="simulated")
    ideal_h = [config.corpus.num_images / (config.actor.images_per_s * count) / 3600 for count in workers]
    axes.plot(workers, ideal_h, linestyle=":", color=_GREY, label="every paid second useful")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    _finish(axes, workers, "wall time", "hours")


def _draw_cost(axes: Axes, rows: Sequence[Row]) -> None:
    workers = [row.num_workers for row in rows]
    _draw_line(axes, workers, [row.usd["total"] for row in rows], colour=_BLUE, label="total")
    nodes = [row.usd["spot"].median + row.usd["on_demand"].median for row in rows]
    axes.plot(workers, nodes, linestyle="--", color=_RED, label="of it nodes")
    axes.set_ylim(bottom=0)
    _finish(axes, workers, "cost", "USD")


def _draw_parts(axes: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    below = [0.0] * len(rows)
    for part in Part:
        shares = [100 * row.parts[part] for row in rows]
        axes.bar(places, shares, 0.8, bottom=below, color=_PART_COLOURS[part], label=part.value)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    axes.set_xticks(places, [f"{row.num_workers:,}" for row in rows])
    axes.grid(axis="x", visible=False)
    axes.set_title("where the paid time goes (useful: goodput)", fontsize=9, loc="left")
    axes.set_xlabel("workers")
    axes.set_ylabel("% of paid time")
    axes.legend(fontsize=7.5, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def _draw_tail(axes: Axes, rows: Sequence[Row]) -> None:
    workers = [row.num_workers for row in rows]
    _draw_line(axes, workers, [row.tail_s for row in rows], colour=_BLUE, label="length, s")
    axes.set_ylim(bottom=0)
    idle = axes.twinx()
    shares = [row.tail_idle_share for row in rows]
    percent = [Spread(100 * share.median, 100 * share.low, 100 * share.high) for share in shares]
    _draw_line(idle, workers, percent, colour=_RED, label="idle meanwhile, %")
    idle.set_ylim(0, 100)
    idle.grid(visible=False)
    idle.spines["right"].set_visible(True)
    idle.set_ylabel("% of the paid time in it", color=_RED)
    _finish(axes, workers, "tail: from the last shard handed out to the end", "seconds")
    lines = [*axes.get_lines(), *idle.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=7.5, loc="lower right")


def _draw_line(axes: Axes, x: Sequence[int], y: Sequence[Spread], *, colour: str, label: str) -> None:
    axes.plot(
        x,
        [spread.median for spread in y],
        color=colour,
        marker="o",
        markersize=3.5,
        linewidth=1.5,
        label=label,
    )
    axes.fill_between(
        x, [spread.low for spread in y], [spread.high for spread in y], color=colour, alpha=0.15, linewidth=0
    )


def _finish(axes: Axes, workers: Sequence[int], title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(workers)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:,}" for count in workers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("workers")
    axes.set_ylabel(unit)
    axes.legend(fontsize=7.5, framealpha=0.8)
