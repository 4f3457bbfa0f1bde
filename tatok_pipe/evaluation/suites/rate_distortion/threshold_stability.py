"""Whether one filter serves all kinds of images: what it spends on each, and what each alone would need.

Letters: M images, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tatok_pipe.evaluation.findings import Figure, Plot, Series, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import Interval, bootstrap_mean
from tatok_pipe.evaluation.suites.base import Row, column
from tatok_pipe.tokenizer.dtf import calibrate

_NATURAL = "natural"
_NATURAL_KINDS = ("", "photo")  # of pictures


@dataclass(frozen=True)
class Group:
    """Images of one kind. `ratio`: the threshold at which they alone would get the mean tokens of the reference, over
    the one that they were filtered with; None under other rules than `threshold`."""

    name: str
    tokens: Interval
    deviation: float  # of the tokens
    psnr: Interval  # dB
    ratio: float | None


class Stability:
    """Of the rows of the data's images and of the probes."""

    def __init__(self, rows: Sequence[Row], plan: EvaluationPlan) -> None:
        self._filter = plan.filter
        self._plan = plan
        members: dict[str, list[Row]] = {}
        for row in sorted(rows, key=_order):
            members.setdefault(_group_name(row), []).append(row)
        # Where the data hold no natural images, they are measured against all that they hold.
        data = [row for row in rows if not row["is_probe"]]
        self._reference = "natural images" if _NATURAL in members else "the data's images"
        target = float(column(members.get(_NATURAL, data), "kept filter").mean())
        self._groups = [self._measure(name, found, target) for name, found in members.items()]

    def verdict(self) -> str:
        spent = "; ".join(
            f"{group.name} {group.tokens.value:.1f} tokens and {group.psnr.value:.1f} dB (n = {group.tokens.n})"
            for group in self._groups
        )
        told = f"One filter ({self._filter.rule} {self._filter.value:.4g} on {self._filter.score}) gives {spent}."
        ratios = [group for group in self._groups if group.ratio is not None and group.name != _NATURAL]
        if ratios:
            needs = ", ".join(f"{group.name} {group.ratio:.2f}" for group in ratios)
            told += (
                f" To get the mean tokens of {self._reference}, each alone would need this many times the threshold: "
                f"{needs}."
            )
        return told

    def figures(self) -> list[Figure]:
        figures = []
        for group in self._groups:
            figures.append(Figure.of(f"tokens, filter on {group.name}", group.tokens, "tokens an image"))
            figures.append(Figure.of(f"PSNR, filter on {group.name}", group.psnr, "dB"))
            if group.ratio is not None:
                name = f"threshold ratio, {group.name}"
                figures.append(Figure(name, group.ratio, "", group.tokens.n))
        return figures

    def table(self) -> Table:
        has_ratio = any(group.ratio is not None for group in self._groups)
        columns = ["images", "n", "tokens", "tokens: low", "tokens: high", "tokens: deviation"]
        columns += ["PSNR, dB", "PSNR: low", "PSNR: high"]
        rows = [
            [
                group.name, group.tokens.n,
                group.tokens.value, group.tokens.low, group.tokens.high, group.deviation,
                group.psnr.value, group.psnr.low, group.psnr.high,
            ]
            + ([group.ratio] if has_ratio else [])
            for group in self._groups
        ]  # fmt: skip
        note = "Probes are made pictures; the other images are the data's, by the kind in their metadata."
        if has_ratio:
            columns.append("threshold ratio")
            note += (
                f" Threshold ratio: the threshold at which these images alone would get the mean tokens of "
                f"{self._reference}, over the one that they were filtered with."
            )
        return Table("stability", "One filter for all kinds of images", columns, rows, note=note)

    def plot(self) -> Plot:
        places = [float(place) for place in range(len(self._groups))]
        tokens = [group.tokens for group in self._groups]
        low, high = [each.low for each in tokens], [each.high for each in tokens]
        bars = Series("tokens", places, [each.value for each in tokens], low, high, kind="bars")
        return Plot(
            "tokens_by_kind", "One filter on kinds of images", "", "tokens an image",
            f"n = {', '.join(str(each.n) for each in tokens)} images", [bars],
            caption="Mean with its interval.", x_labels=[group.name for group in self._groups],
        )  # fmt: skip

    def _measure(self, name: str, rows: Sequence[Row], target: float) -> Group:
        tokens = column(rows, "kept filter") + column(rows, "num_globals")
        ratio = None
        if self._filter.rule == "threshold" and self._filter.value > 0:
            costs = torch.from_numpy(column(rows, "costs"))  # (M, N)
            needed = calibrate(
                costs, rule="threshold", target_patches=target, min_patches=self._filter.min_patches
            )
            ratio = needed / self._filter.value
        return Group(
            name,
            self._mean(tokens),
            float(tokens.std()),
            self._mean(column(rows, "psnr filter")),
            ratio,
        )

    def _mean(self, values: np.ndarray) -> Interval:
        return bootstrap_mean(values, confidence=self._plan.confidence, seed=self._plan.seed)


def _group_name(row: Row) -> str:
    if row["is_probe"]:
        return f"{row['kind']} probe"
    return _NATURAL if row["kind"] in _NATURAL_KINDS else str(row["kind"])


def _order(row: Row) -> tuple[bool, bool, str]:
    """Natural images first, then the data's other kinds by name, then the probes."""
    return (
        row["is_probe"],
        row["kind"] not in _NATURAL_KINDS,
        row["kind"] if row["is_probe"] else _group_name(row),
    )
