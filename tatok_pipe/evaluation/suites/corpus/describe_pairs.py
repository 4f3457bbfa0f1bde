"""What became of the images that two token datasets both hold.

Letters: B images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from tatok_pipe.evaluation.findings import Cell, Figure, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import bootstrap_mean
from tatok_pipe.evaluation.suites.corpus import comparable
from tatok_pipe.evaluation.suites.corpus.comparison import Comparison, Section
from tatok_pipe.evaluation.suites.corpus.drift import chance_of_equal
from tatok_pipe.evaluation.suites.corpus.pairs import Pairs
from tatok_pipe.evaluation.suites.corpus.parts import FIRST, OTHER

DIFFERENCE = f"tokens, {OTHER} - {FIRST}"
CORRELATION = "Spearman correlation of tokens"
IDENTICAL = "share of images with identical tokens"


def describe_pairs(comparison: Comparison, plan: EvaluationPlan) -> Section:
    pairs = comparison.pairs
    tokens, others = pairs.column("tokens"), pairs.column("other_tokens")
    if not len(tokens):
        reason = "no image under the same key in token shards of the same name"
        return Section(left_out={} if comparable.PAIRS in comparison.left_out else {comparable.PAIRS: reason})
    measured = {
        DIFFERENCE: others - tokens,
        IDENTICAL: pairs.column("identical"),
        comparable.EQUAL_GLOBALS: pairs.column("equal_globals"),
        comparable.EQUAL_PATCHES: pairs.column("equal_patches"),
        comparable.OVERLAP: pairs.column("overlap"),
    }
    first, other = comparison.sides
    chance = {
        comparable.EQUAL_GLOBALS: (first.global_groups, other.global_groups),
        comparable.EQUAL_PATCHES: (first.patch_groups, other.patch_groups),
    }
    figures: dict[str, Figure] = {}
    rows: list[list[Cell]] = []
    left_out: dict[str, str] = {}
    for name, values in measured.items():
        there = values[~np.isnan(values)]
        if not len(there):
            if name not in comparison.left_out:
                left_out[name] = f"nothing to compare in {len(values):,} pairs"
            continue
        unit = f"tokens/{comparison.noun}" if name == DIFFERENCE else ""
        interval = bootstrap_mean(there, confidence=plan.confidence, seed=plan.seed)
        figures[name] = Figure.of(name, interval, unit)
        by_chance = chance_of_equal(*(each.sum(0) for each in chance[name])) if name in chance else None
        rows.append([name, interval.value, interval.low, interval.high, by_chance, interval.n])
    if len(tokens) > 2 and np.ptp(tokens) and np.ptp(others):
        found: Any = stats.spearmanr(tokens, others)
        correlation = float(found.statistic)
        figures[CORRELATION] = Figure(CORRELATION, correlation, "", len(tokens))
        rows.append([CORRELATION, correlation, None, None, None, len(tokens)])
    else:
        left_out[CORRELATION] = "takes three pairs, and numbers of tokens that vary in both"
    return Section(
        [_tell(figures, comparison, len(tokens))],
        list(figures.values()),
        _tables(rows, pairs, comparison.noun),
        left_out,
    )


def _tell(figures: Mapping[str, Figure], comparison: Comparison, num_pairs: int) -> str:
    difference = figures[DIFFERENCE]
    parts = [f"{difference.value:+.2f} tokens [{difference.low:+.2f}, {difference.high:+.2f}] in {OTHER}="]
    if CORRELATION in figures:
        parts.append(f"Spearman correlation {figures[CORRELATION].value:.3f}")
    for name, told in (
        (IDENTICAL, "have identical tokens"),
        (comparable.EQUAL_GLOBALS, "of the global codes are equal"),
        (comparable.EQUAL_PATCHES, "of the patch codes are equal where both keep"),
    ):
        if name in figures:
            parts.append(f"{100 * figures[name].value:.3g} % {told}")
    if comparable.OVERLAP in figures:
        parts.append(f"kept positions overlap by {figures[comparable.OVERLAP].value:.3f} (Jaccard)")
    return f"The same {comparison.noun}s in both (n = {num_pairs:,}): {', '.join(parts)}."


def _tables(rows: list[list[Cell]], pairs: Pairs, noun: str) -> list[Table]:
    tables = [
        Table(
            "pairs", f"The same {noun}s in both", ["", "mean", "low", "high", "by chance", "n"], rows,
            note="Matched by key and crop, in token shards of the same name; means with bootstrap intervals over "
            f"{noun}s. By chance: codes drawn independently, one of each dataset's frequencies.",
        )
    ]  # fmt: skip
    if pairs.changed:
        changed: list[list[Cell]] = [
            [each.key, each.crop, each.tokens, each.other_tokens, each.overlap] for each in pairs.changed
        ]
        columns = ["key", "crop", f"tokens, {FIRST}", f"tokens, {OTHER}", "overlap of kept positions"]
        note = "By the change of the number of tokens, then by how little of the kept positions is the same."
        tables.append(Table("changed", f"The {noun}s that changed most", columns, changed, note))
    return tables
