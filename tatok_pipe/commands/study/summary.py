"""From the results of parts to rows of figures: each arm at each budget, over its seeds, and against arms that keep all
their tokens. Pure, but for reading the results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from tatok_pipe.commands.study.declaration import Declaration
from tatok_pipe.commands.study.design import Cell, Design
from tatok_pipe.commands.study.results import Result, read_result
from tatok_pipe.evaluation.statistics import Interval, mean_of_few

NETWORKS = ("pretrained", "classifier")
_OUTCOMES = {True: "better", False: "worse"}


@dataclass(frozen=True)
class Done:
    """A generator whose parts are all there, by kind."""

    cell: Cell
    results: dict[str, Result]

    def interval(self, kind: str, name: str) -> Interval:
        """A figure of one seed, with the interval that it was measured with."""
        figures = self.results[kind].figures
        return Interval(**figures[name], n=figures["num_images"])

    def figure(self, kind: str, name: str) -> Any:
        return self.results[kind].figures[name]

    @property
    def tokens_drawn(self) -> float:
        return float(np.mean(self.figure("likeness", "lengths")))

    @property
    def tokens_real(self) -> float:
        return float(np.mean(self.figure("reconstruction", "real_lengths")))

    @property
    def length_distance(self) -> float:
        """The Kolmogorov-Smirnov statistic of drawn and real lengths."""
        found: Any = stats.ks_2samp(
            self.figure("likeness", "lengths"), self.figure("reconstruction", "real_lengths")
        )
        return float(found.statistic)

    @property
    def sampled_per_s(self) -> float:
        return self.figure("draw", "num_images") / self.results["draw"].seconds["sampling"]


@dataclass(frozen=True)
class Row:
    """An arm at a budget: one entry a seed, at least one."""

    arm: str
    budget: str
    seeds: tuple[Done, ...]
    confidence: float

    @property
    def first(self) -> Done:
        return self.seeds[0]

    def mean(self, measure: Callable[[Done], float]) -> float:
        return float(np.mean([measure(each) for each in self.seeds]))

    def interval(self, kind: str, name: str) -> Interval:
        """Over the seeds; of one seed the interval is that of its own images."""
        found = [each.interval(kind, name) for each in self.seeds]
        if len(found) == 1:
            return found[0]
        return mean_of_few([each.value for each in found], confidence=self.confidence)


@dataclass(frozen=True)
class Comparison:
    """How many times better an arm is than another that keeps all its tokens."""

    arm: str
    reference: str
    budget: str
    measure: str
    ratio: Interval  # above 1: better

    @property
    def verdict(self) -> str:
        if not self.ratio.low <= self.ratio.high or self.ratio.low <= 1 <= self.ratio.high:
            return "undecided"
        return _OUTCOMES[self.ratio.low > 1]


@dataclass(frozen=True)
class Summary:
    declaration: Declaration
    design: Design
    url: str

    @cached_property
    def results(self) -> dict[str, Result]:
        """Of the parts that are there, by id."""
        found = {part_id: read_result(self.url, part_id) for part_id in self.design.parts}
        return {part_id: result for part_id, result in found.items() if result is not None}

    @cached_property
    def done(self) -> list[Done]:
        return [
            Done(cell, {kind: self.results[part] for kind, part in cell.parts.items()})
            for cell in self.design.cells
            if set(cell.parts.values()) <= self.results.keys()
        ]

    @cached_property
    def rows(self) -> list[Row]:
        """In the order of the arms, and of budgets within them."""
        grouped: dict[tuple[str, str], list[Done]] = {}
        for arm in self.declaration.arms:
            for each in self.done:
                if each.cell.arm == arm.name:
                    grouped.setdefault((arm.name, each.cell.budget), []).append(each)
        confidence = self.declaration.config.confidence
        return [
            Row(*key, tuple(sorted(found, key=lambda each: each.cell.seed)), confidence)
            for key, found in grouped.items()
        ]

    @property
    def references(self) -> list[str]:
        """Arms that keep all their tokens."""
        return [arm.name for arm in self.declaration.arms if arm.config.dtf.rule == "none"]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Distances by both networks, and lengths, of every arm against every reference at the same budget."""
        by_place = {(row.arm, row.budget): row for row in self.rows}
        found = []
        for reference in self.references:
            for row in self.rows:
                against = by_place.get((reference, row.budget))
                if against is None or row.arm == reference:
                    continue
                found += [
                    Comparison(
                        row.arm,
                        reference,
                        row.budget,
                        f"distance_{name}",
                        compare(row, against, f"distance_{name}"),
                    )
                    for name in NETWORKS
                ]
        return found

    def row(self, arm: str, budget: str) -> Row | None:
        """None where none of its generators is finished."""
        return next((row for row in self.rows if (row.arm, row.budget) == (arm, budget)), None)

    def account(self, budget: str, measure: str) -> list[Comparison]:
        """Each arm of the account against the one before, and at last the last one against the first: the others
        multiply to it, where all have the same seeds. Empty where an arm is missing."""
        names = self.declaration.config.account
        rows = [self.row(name, budget) for name in names]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows) or not rows:
            return []
        pairs = [*itertools.pairwise(found), (found[0], found[-1])]
        return [
            Comparison(row.arm, before.arm, budget, measure, compare(row, before, measure))
            for before, row in pairs
        ]


def compare(row: Row, against: Row, name: str) -> Interval:
    """`against` over `row`, of a figure of likeness that is better the lower it is: by seeds that both have, in pairs,
    Student's interval of the logarithm; of one seed from the intervals of both, as if they were independent."""
    theirs = {each.cell.seed: each for each in against.seeds}
    pairs = [(each, theirs[each.cell.seed]) for each in row.seeds if each.cell.seed in theirs]
    if not pairs:
        return Interval(math.nan, math.nan, math.nan, 0)
    intervals = [(ours.interval("likeness", name), other.interval("likeness", name)) for ours, other in pairs]
    logs = [math.log(other.value / ours.value) for ours, other in intervals]
    if len(pairs) > 1:
        found = mean_of_few(logs, confidence=row.confidence)
        return Interval(*(math.exp(each) for each in (found.value, found.low, found.high)), n=len(pairs))
    return _ratio_of_one(logs[0], intervals[0])


def _ratio_of_one(log: float, pair: Sequence[Interval]) -> Interval:
    half = math.hypot(*((each.high - each.value) / each.value for each in pair))
    return Interval(math.exp(log), math.exp(log - half), math.exp(log + half), 1)
