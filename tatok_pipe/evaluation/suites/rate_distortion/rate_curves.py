"""What the curves of the suite rate_distortion say.

Letters: M images, P points of a curve, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tatok_pipe.evaluation.findings import Figure, Plot, Series, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import Interval, bootstrap_mean
from tatok_pipe.evaluation.suites.base import TEXTBOOK, TEXTBOOK_NOTE, Row, column, textbook_quality
from tatok_pipe.evaluation.suites.rate_distortion.curves import (
    area_gain,
    at_count,
    corpus_psnr,
    mean,
    paired_difference,
    worst_tenth,
)
from tatok_pipe.tokenizer.analysis import CONTROLS
from tatok_pipe.tokenizer.scores.table import SCORES

CURVES = (*SCORES, *CONTROLS)  # what chooses the patches that are kept
# Rules whose value is one for all images, with the score that they go by; `budget` on `entropy` is the paper's, and
# `proportional` is how InfoTok shares out tokens.
SWEEPS = (*(("threshold", score) for score in SCORES), ("proportional", "gain"), ("budget", "entropy"))
_SHARES = (0.1, 0.22, 0.35, 0.5, 0.75)  # of the patches; 0.22 of 256 are the paper's 56 tokens
_PERCEPTUAL_SHARES = (0.1, 0.22, 0.5)  # as dear as a decoder pass, so not at all of them
_VERDICT_SHARES = (0.5, 0.22)
_LABELS = {
    "random": "random", "variance": "variance", "neighbours": "error to neighbours' mean",
    "one_shot": "one-shot oracle", "prefix": "fixed prefix",
}  # fmt: skip
_STATISTICS = {
    "mean PSNR": mean, "corpus PSNR": corpus_psnr, "PSNR of the worst tenth": worst_tenth,
}  # fmt: skip
_CORPUS_NOTE = (
    "Corpus PSNR is that of the mean squared error over all images, which one threshold on squared error serves; the "
    "mean of PSNR counts a decibel of an easy image as much as one of a hard image."
)


def keep_counts(num_patches: int) -> list[int]:
    """Counts of kept patches at which a curve is measured, ascending, from 1 on."""
    return _counts(_SHARES, num_patches)


def perceptual_counts(num_patches: int) -> list[int]:
    """Those of them at which perceptual distance is measured too."""
    return _counts(_PERCEPTUAL_SHARES, num_patches)


def cell(what: str, *place: str | int) -> str:
    """Name of a column."""
    return " ".join([what, *map(str, place)])


@dataclass(frozen=True)
class SweepPoint:
    """One value of a rule, for all images, beside a fixed count of the same score at the same mean count."""

    rule: str
    score: str
    target: int  # patches, mean over the images that the checkpoint was calibrated on
    value: float
    kept: np.ndarray  # (M,)
    bits: np.ndarray  # (M,)
    psnr: np.ndarray  # (M,) dB
    fixed: np.ndarray  # (M,) dB, at the mean of `kept`
    gains: dict[str, Interval]  # over the fixed count, by name of _STATISTICS


class Curves:
    """Of the rows of the data's images."""

    def __init__(self, rows: Sequence[Row], plan: EvaluationPlan) -> None:
        self._rows = rows
        self._plan = plan
        self._num_globals = int(rows[0]["num_globals"])
        self._num_patches = int(rows[0]["num_patches"])
        self._counts = keep_counts(self._num_patches)
        self._verdict_counts = _counts(_VERDICT_SHARES, self._num_patches)[::-1]
        self._n = f"n = {len(rows)} images"

    def verdicts(self) -> list[str]:
        beside = [told for count in self._verdict_counts if (told := self._beside_textbook(count))]
        return (
            [self._best(count) for count in self._verdict_counts]
            + beside
            + [
                self._judge(point)
                for point in self._sweeps
                if (point.score == self._plan.filter.score or point.rule == "budget")
                and point.target in self._verdict_counts
            ]
            + self._not_measured()
        )

    def figures(self) -> list[Figure]:
        figures = [
            Figure.of("PSNR, all patches", self._mean(self._psnr("none")), "dB"),
            Figure.of("PSNR, globals only", self._mean(self._psnr("globals")), "dB"),
        ]
        for count in self._verdict_counts:
            for name in CURVES:
                told = f"{_label(name)}, {self._share(count)} of the patches"
                figures.append(Figure.of(f"PSNR, {told}", self._mean(self._top_k("psnr", name, count)), "dB"))
                if name != "random":
                    gain = self._to_random("psnr", name, count)
                    figures.append(Figure.of(f"PSNR over random, {told}", gain, "dB"))
        figures += [
            Figure.of(f"PSNR over random, {_label(name)}, mean over log rate", gain, "dB")
            for name, gain in self._areas.items()
        ]
        for point in self._sweeps:
            if point.target in self._verdict_counts:
                told = f"{point.rule} on {point.score}, calibrated for {self._share(point.target)}"
                kept = self._mean(point.kept + self._num_globals)
                figures.append(Figure.of(f"tokens, {told}", kept, "tokens an image"))
                figures += [
                    Figure.of(f"{name} over a fixed count, {told}", gain, "dB")
                    for name, gain in point.gains.items()
                ]
        return figures

    def tables(self) -> list[Table]:
        area = [[_label(name), gain.value, gain.low, gain.high] for name, gain in self._areas.items()]
        ends = f"{self._share(self._counts[0])} and {self._share(self._counts[-1])}"
        return [
            self._by_share("psnr", "PSNR", self._counts, "PSNR, dB"),
            self._by_share(
                "perceptual", "Perceptual distance", perceptual_counts(self._num_patches), "distance"
            ),
            Table(
                "area", "Between a curve and that of random patches",
                ["kept by", "PSNR over random, dB", "low", "high"], area,
                note=f"Mean over the logarithm of the kept share, between {ends}, by the trapezoidal rule.",
            ),
            self._sweep_table(),
        ]  # fmt: skip

    def plots(self) -> list[Plot]:
        return [
            self._curve_plot("psnr", "PSNR, dB", self._counts),
            self._curve_plot(
                "perceptual", "perceptual distance (not LPIPS)", perceptual_counts(self._num_patches)
            ),
            self._gain_plot(),
            self._rules_plot(),
            self._budget_plot(),
        ]

    # Verdicts

    def _best(self, count: int) -> str:
        def quality(name: str) -> float:
            return float(self._top_k("psnr", name, count).mean())

        def told(name: str) -> str:
            gain = self._to_random("psnr", name, count)
            return f"{_label(name)} {quality(name):.2f} dB, {_show(gain)} over random patches"

        first, *others = sorted(SCORES, key=quality, reverse=True)
        control = max((name for name in CONTROLS if name != "random"), key=quality)
        return (
            f"With {self._share(count)} of the patches of each image ({self._num_globals + count} tokens), the best "
            f"score by PSNR is {told(first)}; then {'; '.join(told(name) for name in others)}. The best control is "
            f"{told(control)} ({self._n})."
        )

    def _beside_textbook(self, count: int) -> str:
        textbook = self._textbook(f"top_k {count}")
        if textbook is None:
            return ""
        ours = self._top_k("psnr", self._plan.filter.score, count)
        return (
            f"At the bits of {self._num_globals + count} tokens {TEXTBOOK} has {textbook.mean():.2f} dB: "
            f"{_label(self._plan.filter.score)} is {_show(self._mean(ours - textbook))} over it ({self._n})."
        )

    def _not_measured(self) -> list[str]:
        missing = [f"{rule} on {score}" for rule, score in SWEEPS if (rule, score) not in self._known]
        if not missing:
            return []
        return [
            "Not measured, as the tokenizer is not calibrated for it (tatok_pipe.calibrate does that): "
            f"{', '.join(missing)}."
        ]

    def _judge(self, point: SweepPoint) -> str:
        gains = "; ".join(f"{name} {_show(gain)}, {_word(gain)}" for name, gain in point.gains.items())
        tokens = point.kept.mean() + self._num_globals
        return (
            f"One {point.rule} on {point.score} for all images, {point.value:.4g}, spends {tokens:.1f} tokens on "
            f"average. To a fixed count of as many: {gains} ({self._n})."
        )

    # Figures

    @cached_property
    def _areas(self) -> dict[str, Interval]:
        def curve(name: str) -> np.ndarray:
            return np.stack([self._top_k("psnr", name, count) for count in self._counts], axis=1)

        reference = curve("random")
        return {
            name: self._mean(area_gain(self._counts, curve(name), reference))
            for name in CURVES
            if name != "random"
        }

    @cached_property
    def _sweeps(self) -> list[SweepPoint]:
        return [self._sweep(rule, score, count) for rule, score in self._known for count in self._counts]

    @property
    def _known(self) -> list[tuple[str, str]]:
        """Those of `SWEEPS` that the checkpoint is calibrated for, which were measured."""
        return [sweep for sweep in SWEEPS if cell("value", *sweep, self._counts[0]) in self._rows[0]]

    def _sweep(self, rule: str, score: str, target: int) -> SweepPoint:
        kept, bits, ours, value = (
            column(self._rows, cell(what, rule, score, target)) for what in ("kept", "bits", "psnr", "value")
        )
        curve = [self._psnr("globals")]
        curve += [self._top_k("psnr", score, count) for count in self._counts]
        curve += [self._psnr("none")]
        counts = [0, *self._counts, self._num_patches]
        fixed = at_count(counts, np.stack(curve, axis=1), float(kept.mean()))
        plan = self._plan
        gains = {
            name: paired_difference(ours, fixed, statistic, confidence=plan.confidence, seed=plan.seed)
            for name, statistic in _STATISTICS.items()
        }
        return SweepPoint(rule, score, target, float(value[0]), kept, bits, ours, fixed, gains)

    def _psnr(self, place: str) -> np.ndarray:
        return column(self._rows, cell("psnr", place))

    def _top_k(self, what: str, name: str, count: int) -> np.ndarray:
        return column(self._rows, cell(what, "top_k", name, count))

    def _textbook(self, place: str) -> np.ndarray | None:
        """(M,) dB, at the mean bits of what is measured there."""
        return textbook_quality(self._rows, float(column(self._rows, cell("bits", place)).mean()))

    def _to_random(self, what: str, name: str, count: int) -> Interval:
        return self._mean(self._top_k(what, name, count) - self._top_k(what, "random", count))

    def _mean(self, values: np.ndarray) -> Interval:
        return bootstrap_mean(values, confidence=self._plan.confidence, seed=self._plan.seed)

    def _share(self, count: int) -> str:
        return f"{count / self._num_patches:.0%}"

    # Tables

    def _by_share(self, what: str, title: str, counts: Sequence[int], unit: str) -> Table:
        rows = []
        for count in counts:
            bits = float(column(self._rows, cell("bits", "top_k", count)).mean())
            for name in CURVES:
                gain = self._to_random(what, name, count)
                value = float(self._top_k(what, name, count).mean())
                rows.append(
                    [self._share(count), self._num_globals + count, bits, _label(name), value]
                    + ([None] * 3 if name == "random" else [gain.value, gain.low, gain.high])
                )
            textbook = self._textbook(f"top_k {count}") if what == "psnr" else None
            if textbook is not None:
                gain = self._mean(textbook - self._top_k(what, "random", count))
                told = [self._share(count), None, bits, TEXTBOOK, float(textbook.mean())]
                rows.append([*told, gain.value, gain.low, gain.high])
        whole, least = (float(column(self._rows, cell(what, end)).mean()) for end in ("none", "globals"))
        note = (
            f"Means over images, the same count in each. All patches: {whole:.4g}; globals only: {least:.4g}."
        )
        if what == "perceptual":
            note += " Of EfficientNet-Lite0's features, not LPIPS; lower is better."
        else:
            note += f" {TEXTBOOK_NOTE}"
        columns = ["patches", "tokens", "bits an image", "kept by", unit, "to random", "low", "high"]
        return Table(what, f"{title} by what chooses the patches", columns, rows, note=note)

    def _sweep_table(self) -> Table:
        rows = []
        for point in self._sweeps:
            tokens = point.kept + self._num_globals
            told = [point.rule, point.score, point.value, float(tokens.mean()), float(tokens.std())]
            told += [int(tokens.min()), int(tokens.max()), float(point.bits.mean())]
            for name, statistic in _STATISTICS.items():
                gain = point.gains[name]
                told += [float(statistic(point.psnr)), gain.value, gain.low, gain.high]
            rows.append(told)
        columns = ["rule", "score", "value", "tokens", "deviation", "least", "most", "bits an image"]
        for name in _STATISTICS:
            columns += [f"{name}, dB", *(f"{name}: {each}" for each in ("to fixed count", "low", "high"))]
        return Table(
            "rules", "One value for all images beside a fixed count", columns, rows,
            note="Values are of the checkpoint's calibration; those of entropy are nats, others mean squared errors. "
            f"The fixed count is at the same mean tokens, between points of its curve (PCHIP). {_CORPUS_NOTE}",
        )  # fmt: skip

    # Plots

    def _curve_plot(self, what: str, y_title: str, counts: Sequence[int]) -> Plot:
        ends = [float(column(self._rows, cell(what, end)).mean()) for end in ("globals", "none")]
        series = [
            Series(
                _label(name),
                self._tokens([0, *counts, self._num_patches]),
                [ends[0], *(float(self._top_k(what, name, count).mean()) for count in counts), ends[1]],
            )
            for name in CURVES
        ]
        places = ["globals", *(f"top_k {count}" for count in counts), "none"]
        beside = [self._textbook(place) for place in places] if what == "psnr" else []
        if beside and all(each is not None for each in beside):
            values = [float(each.mean()) for each in beside if each is not None]
            series.append(
                Series(f"{TEXTBOOK}, as many bits", self._tokens([0, *counts, self._num_patches]), values)
            )
        title = f"{'PSNR' if what == 'psnr' else 'Perceptual distance'} by tokens"
        return Plot(
            f"{what}_by_tokens", title, "tokens an image", y_title, self._n, series,
            caption="The same count in every image, from the globals alone to all patches; means over images.",
        )  # fmt: skip

    def _gain_plot(self) -> Plot:
        series = []
        for name in CURVES:
            if name not in ("random", "prefix"):
                gains = [self._to_random("psnr", name, count) for count in self._counts]
                low, high = [gain.low for gain in gains], [gain.high for gain in gains]
                y = [gain.value for gain in gains]
                series.append(Series(_label(name), self._tokens(self._counts), y, low, high))
        return Plot(
            "gain_by_tokens", "PSNR over random patches", "tokens an image", "PSNR over random, dB", self._n,
            series, caption="Mean paired difference with its interval. The fixed prefix, which does not look at the "
            "image, is in the plot of PSNR.",
        )  # fmt: skip

    def _rules_plot(self) -> Plot:
        series = []
        for score in dict.fromkeys((self._plan.filter.score, "entropy")):
            fixed = [float(self._top_k("psnr", score, count).mean()) for count in self._counts]
            series.append(Series(f"fixed count, {score}", self._tokens(self._counts), fixed))
            for rule in dict.fromkeys(rule for rule, _ in SWEEPS):
                if points := [each for each in self._sweeps if (each.rule, each.score) == (rule, score)]:
                    x = [float(point.kept.mean()) + self._num_globals for point in points]
                    y = [float(point.psnr.mean()) for point in points]
                    series.append(Series(f"{rule}, {score}", x, y))
        return Plot(
            "psnr_by_rule", "One value for all images, or a fixed count", "tokens an image, mean",
            "PSNR, dB, mean", self._n, series, caption=_CORPUS_NOTE,
        )  # fmt: skip

    def _budget_plot(self) -> Plot:
        points = [each for each in self._sweeps if each.rule == "budget"]
        kept = [self._mean(point.kept) for point in points]
        low, high = [each.low for each in kept], [each.high for each in kept]
        line = Series("mean", [point.value for point in points], [each.value for each in kept], low, high)
        return Plot(
            "kept_by_budget", "The paper's budget", "budget ε, nats an image", "kept patches an image", self._n,
            [line], caption="Patches are dropped in ascending entropy while the dropped sum stays within ε; the band "
            "is the interval of the mean.",
        )  # fmt: skip

    def _tokens(self, counts: Sequence[int]) -> list[float]:
        return [float(self._num_globals + count) for count in counts]


def _counts(shares: Sequence[float], num_patches: int) -> list[int]:
    return sorted({max(1, round(share * num_patches)) for share in shares})


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _show(gain: Interval) -> str:
    return f"{gain.value:+.2f} dB ({gain.low:+.2f} … {gain.high:+.2f})"


def _word(gain: Interval) -> str:
    """Of what `_show` shows: differences below its digits are none."""
    if round(gain.low, 2) > 0:
        return "better"
    return "worse" if round(gain.high, 2) < 0 else "no clear difference"
