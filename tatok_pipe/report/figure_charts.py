"""The report's charts: which figures are drawn, in which range, and what is said below them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tatok_pipe.report.charts import Curve, Marker, histogram, rank_frequency, scatter
from tatok_pipe.report.figures import SourceSizes, count, describe_codes, describe_correlation, percent
from tatok_pipe.report.selection import SAMPLE_IMAGES
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics, information_edges

_MAX_BARS = 64


@dataclass(frozen=True)
class Chart:
    title: str
    svg: str
    caption: str


def draw_charts(spec: TokenSpec, statistics: ShardStatistics, sizes: SourceSizes) -> list[Chart]:
    """All charts of a dataset that has images."""
    information = [_draw_information(statistics)] if statistics.mutual_information_count else []
    return [
        _draw_tokens(statistics),
        _draw_entropy(statistics),
        *information,
        _draw_sizes(spec, sizes),
        _draw_codes(statistics),
    ]


def _draw_tokens(statistics: ShardStatistics) -> Chart:
    edges, counts = group_counts(statistics.kept_histogram, max_bars=_MAX_BARS)
    width = int(edges[1] - edges[0])
    fixed = statistics.num_globals + statistics.num_patches
    mean = statistics.mean_tokens
    middle = ", ".join(f"{p} % of them take at most {statistics.token_percentile(p):,}" for p in (25, 50, 75))
    return Chart(
        "Tokens per image",
        histogram(
            # A bar stands over its whole numbers: the one of 16 from 15.5 to 16.5.
            edges + statistics.num_globals - 0.5,
            counts,
            x_title="tokens per image, globals included",
            y_title="images",
            summary=f"Histogram of tokens per image: mean {mean:.1f}, from {statistics.token_percentile(0):,} to "
            f"{statistics.token_percentile(100):,}, fixed rate {fixed:,}.",
            bar_titles=[
                f"{low} to {low + width - 1} tokens: {count(number, 'image')}"
                for low, number in zip(
                    (edges + statistics.num_globals).tolist(), counts.tolist(), strict=False
                )
            ],
            markers=[Marker(mean, f"mean {mean:.1f}"), Marker(fixed, f"fixed rate {fixed:,}")],
        ),
        f"n = {count(statistics.num_images, 'image')}, bars {count(width, 'token')} wide; {middle}.",
    )


def _draw_entropy(statistics: ShardStatistics) -> Chart:
    counts = statistics.entropy_histogram
    used = np.flatnonzero(counts)
    first, last = max(0, int(used[0]) - 1), min(len(counts), int(used[-1]) + 2)
    width = statistics.entropy_bin_nats
    mean, kept = (
        statistics.mean_entropy_nats,
        statistics.mean_entropy_nats - statistics.mean_entropy_dropped_nats,
    )
    return Chart(
        "Code entropy per image",
        histogram(
            np.arange(first, last + 1) * width,
            counts[first:last],
            x_title="entropy of all N patch codes, nats per image",
            y_title="images",
            summary=f"Histogram of code entropy per image before filtering: mean {mean:.1f} nats.",
            bar_titles=[
                f"{place * width:.0f} to {(place + 1) * width:.0f} nats: {count(number, 'image')}"
                for place, number in enumerate(counts[first:last].tolist(), first)
            ],
            markers=[Marker(mean, f"mean {mean:.1f}")],
        ),
        f"n = {count(statistics.num_images, 'image')}, before filtering, bars {width:.1f} nats wide. On average "
        f"{kept:.1f} nats are in kept patches and {mean - kept:.1f} were dropped.",
    )


def _draw_information(statistics: ShardStatistics) -> Chart:
    counts, edges = statistics.mutual_information_histogram, information_edges().astype(np.float64)
    used = np.flatnonzero(counts)
    first, last = max(0, int(used[0]) - 1), min(len(counts), int(used[-1]) + 2)
    mean, number = statistics.mean_mutual_information_nats, statistics.mutual_information_count
    below_zero = int(counts[: len(counts) // 2].sum())
    return Chart(
        "Information that globals and patches share",
        histogram(
            edges[first : last + 1],
            counts[first:last],
            x_title="estimate of I(G; P), nats per image (asinh)",
            y_title="images",
            summary=f"Histogram of the estimated mutual information of globals and patches: mean {mean:z.2f} nats.",
            bar_titles=[
                f"{low:z.3g} to {high:z.3g} nats: {count(images, 'image')}"
                for low, high, images in zip(
                    edges[first:last].tolist(),
                    edges[first + 1 :].tolist(),
                    counts[first:last].tolist(),
                    strict=False,
                )
            ],
            markers=[Marker(mean, f"mean {mean:z.2f}")],
            is_asinh=True,
        ),
        f"n = {count(number, 'image')}, bars even in asinh. A difference of two estimates, so it may fall below zero: "
        f"here for {percent(below_zero / number)}.",
    )


def _draw_sizes(spec: TokenSpec, sizes: SourceSizes) -> Chart:
    title = "Tokens against size of the source image"
    number = len(sizes.num_tokens)
    lost = (
        f" {count(len(sizes.problems), 'image shard')} could not be read: {sizes.problems[0]}."
        if sizes.problems
        else ""
    )
    if not number:
        return Chart(title, "", f"n = 0: no source image was read.{lost}")
    origin = (
        "all images"
        if sizes.is_complete
        else f"the first of each of {count(sizes.num_shards, 'shard')}, {SAMPLE_IMAGES:,} at most, from shards "
        "spread evenly over the dataset"
    )
    return Chart(
        title,
        scatter(
            sizes.num_bytes / 1000,
            sizes.num_tokens,
            x_title="encoded source image, kB (log)",
            y_title="tokens per image",
            y_range=(0.0, float(spec.num_globals + spec.num_patches)),
            summary=f"Scatter of tokens against source image bytes for {count(number, 'image')}; "
            f"{describe_correlation(sizes)}, by bytes per pixel.",
            is_second=~sizes.is_jpeg,
            labels=("JPEG", "other format"),
        ),
        f"n = {count(number, 'image')}: {origin}. JPEG bytes per pixel: {describe_correlation(sizes)}.{lost}",
    )


def _draw_codes(statistics: ShardStatistics) -> Chart:
    curves = [
        Curve("patch codes", "a", statistics.patch_code_counts),
        Curve("global codes", "b", statistics.global_code_counts),
    ]
    texts = [
        f"{curve.label} {describe_codes(curve.values)} (n = {int(curve.values.sum()):,})" for curve in curves
    ]
    text = "; ".join(texts)
    return Chart(
        "Use of the codebooks",
        rank_frequency(
            curves,
            x_title="rank of the code, most frequent first (log)",
            y_title="share of all codes (log)",
            summary=f"Rank and frequency of codes: {text}.",
        ),
        f"{text[0].upper()}{text[1:]}. A curve ends at the last code that occurs.",
    )


def group_counts(counts: np.ndarray, *, max_bars: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n,) of 0 to n - 1, summed in at most `max_bars` bars of equal whole width: edges and bars."""
    width = math.ceil(len(counts) / max_bars)
    num_bars = math.ceil(len(counts) / width)
    padded = np.zeros(num_bars * width, np.int64)
    padded[: len(counts)] = counts
    return np.arange(num_bars + 1) * width, padded.reshape(num_bars, width).sum(1)
