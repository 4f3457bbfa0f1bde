from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from tatok_pipe.records import TokenRecord
from tatok_pipe.report.charts import HEIGHT, WIDTH, Axis, Curve, Marker, histogram, rank_frequency, scatter
from tatok_pipe.report.figure_charts import draw_charts, group_counts
from tatok_pipe.report.figures import SourceSizes
from tatok_pipe.tokens.format import empty_statistics
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def draw_histogram(counts: list[int], markers: tuple[Marker, ...] = ()) -> ElementTree.Element:
    svg = histogram(
        np.arange(len(counts) + 1),
        np.array(counts),
        x_title="tokens",
        y_title="images",
        summary="a summary",
        bar_titles=[f"bar {place}" for place in range(len(counts))],
        markers=markers,
    )
    return parse(svg)


def test_heights_of_bars_are_their_counts() -> None:
    root = draw_histogram([4, 0, 2, 1])
    bars = list(root.iter("rect"))
    assert [bar.findtext("title") for bar in bars] == ["bar 0", "bar 2", "bar 3"]  # nothing is drawn for 0
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] / heights[1] == pytest.approx(2, rel=0.01)
    assert heights[0] / heights[2] == pytest.approx(4, rel=0.01)
    bottoms = {round(float(bar.attrib["y"]) + float(bar.attrib["height"])) for bar in bars}
    assert len(bottoms) == 1
    step = float(bars[1].attrib["x"]) - float(bars[0].attrib["x"])
    assert step == pytest.approx(2 * (float(bars[2].attrib["x"]) - float(bars[1].attrib["x"])), rel=0.01)


def test_axes_markers_and_summary_are_written_out() -> None:
    root = draw_histogram([1, 2], markers=(Marker(0.5, "mean 0.5"), Marker(2, "a < b & c")))
    assert {"tokens", "images", "mean 0.5", "a < b & c"} <= set(texts(root))
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "a summary"
    assert "width" not in root.attrib and root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"


def draw_scatter(x: list[float], y: list[float], is_second: list[bool]) -> ElementTree.Element:
    svg = scatter(
        np.array(x),
        np.array(y),
        x_title="kB",
        y_title="tokens",
        y_range=(0, 20),
        summary="",
        is_second=np.array(is_second),
        labels=("JPEG", "other"),
    )
    return parse(svg)


def test_points_lie_where_their_values_are() -> None:
    root = draw_scatter([1, 10, 100], [0, 10, 20], [False, False, True])
    groups = [
        group for group in root.iter("g") if len(group) and group[0].attrib["r"] != "4"
    ]  # not the legend
    assert [len(group) for group in groups] == [2, 1]
    points = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for group in groups for dot in group]
    for axis in (0, 1):
        low, middle, high = (point[axis] for point in points)
        assert middle == pytest.approx((low + high) / 2, abs=0.1)  # x is a log axis
    assert points[0][1] > points[2][1]  # more tokens are higher up
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
    assert {"JPEG", "other"} <= set(texts(root))


def test_one_group_needs_no_legend() -> None:
    assert not {"JPEG", "other"} & set(texts(draw_scatter([5], [7], [False])))


def test_curves_fall_and_end_at_the_last_used_code() -> None:
    counts = np.array([0, 1, 100, 10, 0])
    svg = rank_frequency(
        [Curve("a few", "a", counts), Curve("none", "b", np.zeros(9, int))],
        x_title="",
        y_title="",
        summary="",
    )
    lines = [each for each in parse(svg).iter("polyline") if len(each.attrib["points"].split()) == 3]
    assert len(lines) == 1  # the other polylines are the legend's
    points = [tuple(map(float, point.split(","))) for point in lines[0].attrib["points"].split()]
    assert points == sorted(points)
    falls = [low[1] - high[1] for high, low in zip(points, points[1:], strict=False)]
    assert falls[0] == pytest.approx(falls[1], abs=0.2) and falls[0] > 0  # by a factor of 10 each time
    assert {"a few", "none"} <= set(texts(parse(svg)))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 44, [0, 10, 20, 30, 40]),
        (15.5, 275.5, [50, 100, 150, 200, 250]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_linear_ticks(low: float, high: float, expected: list[float]) -> None:
    assert Axis("", low, high).ticks() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.9, 260, [1, 2, 5, 10, 20, 50, 100, 200]),
        (1, 16384, [1, 10, 100, 1000, 10000]),
        (3.1, 4.4, [3.5, 4]),
        (1e-7, 0.3, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
    ],
)
def test_log_ticks(low: float, high: float, expected: list[float]) -> None:
    ticks = Axis("", low, high, is_log=True).ticks()
    assert ticks == pytest.approx(expected)


def test_place_on_a_log_axis() -> None:
    axis = Axis("", 1, 100, is_log=True)
    assert [axis.place(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert Axis("", 3, 3).place(3) == 0.5


@pytest.mark.parametrize("num", [1, 5, 64, 65, 257, 1025])
def test_grouping_loses_nothing(num: int) -> None:
    counts = np.random.default_rng(num).integers(0, 9, num)
    edges, bars = group_counts(counts, max_bars=64)
    assert len(bars) <= 64 and len(edges) == len(bars) + 1
    assert edges[0] == 0 and edges[-1] >= num
    for low, high, bar in zip(edges, edges[1:], bars, strict=False):
        assert bar == counts[low:high].sum()


def test_charts_of_a_dataset(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    statistics = empty_statistics(token_spec)
    statistics.update(make_token_records(token_spec, 30))
    sizes = SourceSizes(np.array([4]), np.array([1000]), np.array([10]), np.array([True]), num_shards=1)
    charts = draw_charts(token_spec, statistics, sizes)
    assert len(charts) == 5
    for chart in charts:
        root = parse(chart.svg)
        assert not any(math.isnan(float(value)) for each in root.iter("rect") for value in [each.attrib["y"]])
        titles = [each.text for each in root.iter("text") if each.attrib["class"] == "axis-title"]
        assert len(titles) == 2 and all(titles)
        assert "n = " in chart.caption
    bars = [each.findtext("title") or "" for each in parse(charts[0].svg).iter("rect")]
    assert sum(int(title.split(": ")[1].split()[0]) for title in bars) == 30


def test_sizes_that_could_not_be_read(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    statistics = empty_statistics(token_spec)
    statistics.update(make_token_records(token_spec, 3))
    none = np.zeros(0)
    sizes = SourceSizes(none, none, none, none.astype(bool), problems=("x.tar: gone",))
    chart = draw_charts(token_spec, statistics, sizes)[-2]
    assert not chart.svg
    assert chart.caption == "n = 0: no source image was read. 1 image shard could not be read: x.tar: gone."


def test_mutual_information_is_drawn_where_it_was_recorded(
    token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    none = np.zeros(0)
    sizes = SourceSizes(none, none, none, none.astype(bool))
    records = make_token_records(token_spec, 3)
    drawn = []
    for nats in ([-2.0, 5.0, 5.0], [None, None, 5.0], [None] * 3):
        statistics = empty_statistics(token_spec)
        statistics.update(
            [replace(record, mutual_information=n) for record, n in zip(records, nats, strict=True)]
        )
        charts = {chart.title: chart for chart in draw_charts(token_spec, statistics, sizes)}
        drawn.append(charts.get("Information that globals and patches share"))
    both, one, nothing = drawn
    assert nothing is None and one is not None and both is not None
    titles = [each.findtext("title") for each in parse(both.svg).iter("rect")]
    # asinh(5) = 2.31 is in the bin from 6 to 7 times 0.375, asinh(-2) = -1.44 in that from -4 to -3 times.
    assert titles == ["-2.13 to -1.38 nats: 1 image", "4.69 to 6.87 nats: 2 images"]
    assert both.caption.startswith("n = 3 images, ") and both.caption.endswith("here for 33.3 %.")
    assert one.caption.startswith("n = 1 image, ") and one.caption.endswith("here for 0 %.")
    assert "mean 2.67" in texts(parse(both.svg))


def test_an_asinh_axis_is_even_in_asinh_and_has_ticks_on_both_sides() -> None:
    axis = Axis("", -1000, 1000, is_asinh=True)
    assert [axis.place(each) for each in (-1000, 0, 1000)] == [0, 0.5, 1]
    assert axis.place(math.sinh(2)) - axis.place(math.sinh(1)) == pytest.approx(
        axis.place(math.sinh(1)) - 0.5
    )
    assert axis.ticks() == [-1000, -100, -10, -1, 0, 1, 10, 100, 1000]
    assert Axis("", 4.0, 7.0, is_asinh=True).ticks() == [4, 4.5, 5, 5.5, 6, 6.5, 7]
