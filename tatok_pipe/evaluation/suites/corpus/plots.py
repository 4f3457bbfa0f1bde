"""The plots of two token datasets."""

from __future__ import annotations

import numpy as np

from tatok_pipe.evaluation.findings import Plot, Series
from tatok_pipe.evaluation.suites.corpus.comparison import Comparison
from tatok_pipe.evaluation.suites.corpus.counts import Counts
from tatok_pipe.evaluation.suites.corpus.parts import FIRST, OTHER

_NUM_BINS = 24
_NUM_RANKS = 100  # points of a curve
_NUM_POINTS = 2_000  # of a scatter plot


def make_plots(comparison: Comparison, *, seed: int) -> list[Plot]:
    plots = [
        _histogram(comparison),
        *(_ranks(comparison, codebook) for codebook in ("global", "patch")),
    ]  # fmt: skip
    if len(comparison.pairs.column("tokens")):
        plots.append(_scatter(comparison, seed))
    return plots


def _histogram(comparison: Comparison) -> Plot:
    histograms = [_tokens(side) for side in comparison.sides]
    least = min(values.min() for values, _ in histograms)
    most = max(values.max() for values, _ in histograms)
    width = -(
        -(most - least + 1) // _NUM_BINS
    )  # a whole number, or bins would hold unequal numbers of counts
    edges = np.arange(least, most + width + 1, width) - 0.5
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = [
        Series(
            name, middles, np.histogram(values, edges, weights=shares)[0].tolist(), kind="bars"
        )
        for name, (values, shares) in zip((FIRST, OTHER), histograms, strict=True)
    ]  # fmt: skip
    return Plot(
        "tokens", f"Tokens of the {comparison.noun}s", f"tokens/{comparison.noun}", f"share of {comparison.noun}s",
        comparison.size, series,
    )  # fmt: skip


def _tokens(side: Counts) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of tokens that occur, and their shares."""
    histogram = side.statistics.kept_histogram
    (kept,) = np.nonzero(histogram)
    return kept + side.spec.num_globals, histogram[kept] / histogram.sum()


def _ranks(comparison: Comparison, codebook: str) -> Plot:
    series, numbers = [], []
    for name, side in zip((FIRST, OTHER), comparison.sides, strict=True):
        statistics = side.statistics
        counts = statistics.global_code_counts if codebook == "global" else statistics.patch_code_counts
        numbers.append(f"{counts.sum():,}")
        falling = np.sort(counts[counts > 0])[::-1]
        if len(falling):
            ranks = np.unique(np.geomspace(1, len(falling), _NUM_RANKS).round().astype(np.int64))
            series.append(Series(name, ranks.tolist(), (falling[ranks - 1] / counts.sum()).tolist()))
    return Plot(
        f"{codebook}_codes", f"Use of the {codebook} codes", "rank of the code", "share of codes",
        f"n = {' and '.join(numbers)} codes", series, is_log_x=True, is_log_y=True,
        caption="Codes by falling frequency, but for those that never occur. Where both are equal, the second line "
        "covers the first.",
    )  # fmt: skip


def _scatter(comparison: Comparison, seed: int) -> Plot:
    tokens, others = (comparison.pairs.column(name) for name in ("tokens", "other_tokens"))
    number, caption = len(tokens), f"Each point is one of the {comparison.noun}s that both hold."
    if number > _NUM_POINTS:
        shown = np.sort(np.random.default_rng(seed).choice(number, _NUM_POINTS, replace=False))
        tokens, others = tokens[shown], others[shown]
        caption = f"{_NUM_POINTS:,} of the {number:,} {comparison.noun}s that both hold, drawn at random."
    return Plot(
        "pairs", f"The same {comparison.noun}s in both", f"tokens/{comparison.noun}, {FIRST}",
        f"tokens/{comparison.noun}, {OTHER}", f"n = {number:,} {comparison.noun}s",
        [Series(f"{comparison.noun}s", tokens.tolist(), others.tolist(), kind="points")],
        caption=caption, has_diagonal=True,
    )  # fmt: skip
