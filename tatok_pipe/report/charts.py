"""Charts as inline SVG text: histogram, scatter, rank and frequency. Pure functions of numbers.

An SVG here has no size of its own, only a viewBox, and takes the width it is given. Colours and letter sizes come
from the page's CSS by class, so that one drawing serves light and dark, desk and phone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 56, 50  # margins, in units of the viewBox
_LINE = 17  # height of a line of text
_MAX_POINTS_OF_CURVE = 200
_MAX_LOG_TICKS = 8


@dataclass(frozen=True)
class Axis:
    """A title with its unit, and the range shown. A log axis needs 0 < low; an asinh axis is linear around zero and
    log far from it, on both sides."""

    title: str
    low: float
    high: float
    is_log: bool = False
    is_asinh: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 (low) to 1 (high)."""
        scale = math.log if self.is_log else math.asinh if self.is_asinh else float
        low, high, value = scale(self.low), scale(self.high), scale(value)
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self, max_ticks: int = 6) -> list[float]:
        """Round values within the range, about `max_ticks` of them at most."""
        if self.is_asinh:
            powers = [10.0**power for power in range(9)]
            signed = [-power for power in reversed(powers)] + [0.0] + powers
            ticks = [tick for tick in signed if self.low <= tick <= self.high]
            return ticks if len(ticks) > 2 else _linear_ticks(self.low, self.high, max_ticks)
        if not self.is_log:
            return _linear_ticks(self.low, self.high, max_ticks)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1,)):
            ticks = [digit * 10.0**decade for decade in decades for digit in digits]
            ticks = [tick for tick in ticks if self.low <= tick * 1.000001 and tick <= self.high * 1.000001]
            if len(ticks) < 2:
                return _linear_ticks(self.low, self.high, max_ticks)
            if len(ticks) <= _MAX_LOG_TICKS:
                return ticks
        return ticks[:: math.ceil(len(ticks) / _MAX_LOG_TICKS)]


@dataclass(frozen=True)
class Marker:
    """A vertical line at `x` with a label."""

    x: float
    label: str


@dataclass(frozen=True)
class Curve:
    """Values (n,) to be shown by rank. `style` is a CSS class of the page: "a" or "b"."""

    label: str
    style: str
    values: np.ndarray = field(repr=False)


def histogram(
    edges: np.ndarray,
    counts: np.ndarray,
    *,
    x_title: str,
    y_title: str,
    summary: str,
    bar_titles: Sequence[str],
    markers: Sequence[Marker] = (),
    is_asinh: bool = False,
) -> str:
    """Bars between edges (n + 1,) of counts (n,), each with the title that a pointer over it shows; `summary` is
    what a screen reader says. With `is_asinh` the edges stand on an asinh axis."""
    x = Axis(x_title, float(edges[0]), float(edges[-1]), is_asinh=is_asinh)
    y = Axis(y_title, 0.0, max(1.0, float(counts.max(initial=0))))
    bars = []
    limits = edges.tolist()
    for low, high, height, title in zip(limits, limits[1:], counts.tolist(), bar_titles, strict=False):
        if height:
            left, right, top = _x(x, low), _x(x, high), _y(y, height)
            gap = min(1.0, (right - left) / 5)
            bars.append(
                f'<rect class="bar" x="{_n(left)}" y="{_n(top)}" width="{_n(right - left - gap)}" '
                f'height="{_n(_y(y, 0) - top)}"><title>{html.escape(title)}</title></rect>'
            )
    return _draw(x, y, "".join(bars) + _draw_markers(x, markers), summary)


def scatter(
    x_values: np.ndarray,
    y_values: np.ndarray,
    *,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float],
    summary: str,
    is_second: np.ndarray,
    labels: tuple[str, str],
) -> str:
    """Points (n,), x on a log axis; those where `is_second` are drawn as rings and called labels[1]."""
    x = Axis(x_title, float(x_values.min()) / 1.1, float(x_values.max()) * 1.1, is_log=True)
    y = Axis(y_title, *y_range)
    groups = []
    for style, chosen, radius in (("a", ~is_second, 2.4), ("b", is_second, 2.8)):
        points = zip(x_values[chosen].tolist(), y_values[chosen].tolist(), strict=True)
        dots = "".join(f'<circle cx="{_n(_x(x, a))}" cy="{_n(_y(y, b))}" r="{radius}"/>' for a, b in points)
        groups.append(f'<g class="dots {style}">{dots}</g>')
    shown = [
        (label, style)
        for label, style, n in zip(labels, "ab", (~is_second, is_second), strict=True)
        if n.any()
    ]
    legend = _draw_legend(shown, kind="dots") if len(shown) > 1 else ""
    return _draw(x, y, "".join(groups) + legend, summary)


def rank_frequency(curves: Sequence[Curve], *, x_title: str, y_title: str, summary: str) -> str:
    """Each curve's positive values as shares of their sum, falling, against their rank; both axes log."""
    shares = {curve.label: _falling_shares(curve.values) for curve in curves}
    filled = [share for share in shares.values() if len(share)]
    x = Axis(x_title, 1.0, max(2.0, *(float(len(curve.values)) for curve in curves)), is_log=True)
    y = Axis(
        y_title,
        min((float(share[-1]) for share in filled), default=0.1) / 1.3,
        min(1.0, max((float(share[0]) for share in filled), default=1.0) * 1.3),
        is_log=True,
    )
    paths = []
    for curve in curves:
        share = shares[curve.label]
        if len(share):
            ranks = np.unique(
                np.geomspace(1, len(share), min(len(share), _MAX_POINTS_OF_CURVE)).round().astype(int)
            )
            points = " ".join(
                f"{_n(_x(x, rank))},{_n(_y(y, float(share[rank - 1])))}" for rank in ranks.tolist()
            )
            paths.append(f'<polyline class="curve {curve.style}" points="{points}"/>')
    legend = _draw_legend([(curve.label, curve.style) for curve in curves], kind="curve")
    return _draw(x, y, "".join(paths) + legend, summary)


def _draw(x: Axis, y: Axis, content: str, summary: str) -> str:
    """The whole SVG: grid, axes with titles, and the content over them."""
    left, right, bottom = _LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for tick in y.ticks(5):
        at = _n(_y(y, tick))
        parts.append(f'<path class="grid" d="M{left} {at}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{left - 7}" y="{at}" dy=".35em" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x.ticks():
        at = _n(_x(x, tick))
        parts.append(f'<path class="axis" d="M{at} {bottom}v5"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{bottom + 19}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(content)
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts.append(f'<text class="axis-title" x="4" y="14">{html.escape(y.title)}</text>')
    parts.append(
        f'<text class="axis-title" x="{right}" y="{HEIGHT - 8}" text-anchor="end">{html.escape(x.title)}</text>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(summary)}">'
        f"{''.join(parts)}</svg>"
    )


def _draw_markers(x: Axis, markers: Sequence[Marker]) -> str:
    parts = []
    for row, marker in enumerate(markers):
        at = _x(x, marker.x)
        baseline = 14 + _LINE * (row + 1)
        is_left = at < (WIDTH + _LEFT) / 2
        anchor, offset = ("start", 4) if is_left else ("end", -4)
        parts.append(
            f'<path class="marker" d="M{_n(at)} {baseline - 9}V{HEIGHT - _BOTTOM}"/>'
            f'<text class="mark" x="{_n(at + offset)}" y="{baseline}" text-anchor="{anchor}">'
            f"{html.escape(marker.label)}</text>"
        )
    return "".join(parts)


def _draw_legend(entries: Sequence[tuple[str, str]], *, kind: str) -> str:
    parts = []
    for place, (label, style) in enumerate(entries):
        left, baseline = _LEFT + place * 190, 14 + 1.4 * _LINE
        swatch = (
            f'<polyline class="curve {style}" points="{left},{baseline - 4} {left + 24},{baseline - 4}"/>'
            if kind == "curve"
            else f'<g class="dots {style}"><circle cx="{left + 18}" cy="{baseline - 4}" r="4"/></g>'
        )
        parts.append(f'{swatch}<text class="mark" x="{left + 30}" y="{baseline}">{html.escape(label)}</text>')
    return "".join(parts)


def _falling_shares(counts: np.ndarray) -> np.ndarray:
    used = np.sort(counts[counts > 0])[::-1]
    return used / max(1, used.sum())


def _linear_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    if high <= low:
        return [low]
    rough = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _n(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def _number(value: float) -> str:
    """20000 as 20k, 0.0001 as 0.0001: short enough for a tick."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.0e}"
