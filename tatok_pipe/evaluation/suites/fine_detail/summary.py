"""From the rows of the suite `fine_detail` to its tests, figures, tables, plots, pictures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tatok_pipe.ar.generation.exports import decode
from tatok_pipe.evaluation.findings import Cell, Exhibit, Figure, Gallery, Pane, Plot, Series, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import PairedTest, bootstrap_mean, holm, paired_drop
from tatok_pipe.evaluation.suites.base import Row, column, image_table

LEVEL = 0.05  # of the whole family of tests
# One-sided signed ranks of n pairs reach 2^-n at best: ten survive Holm over more tests than there ever are.
MIN_PAIRS = 10
REFERENCES = {"full": "all patches", "baseline": "patch tokens alone"}
_NUM_SHOWN = 3
_ILLEGIBLE = 0.5  # character error rate


@dataclass(frozen=True)
class Measure:
    name: str
    label: str
    unit: str
    higher_is_better: bool

    @property
    def with_unit(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label


MEASURES = (
    Measure("psnr", "PSNR", "dB", True),
    Measure("ssim", "SSIM", "", True),
    Measure("perceptual", "perceptual distance", "", False),
    Measure("cer", "character error rate", "", False),
)


@dataclass(frozen=True)
class Comparison:
    """One test: a set of images, a measure, and what the filtered images are compared with."""

    of: str
    measure: Measure
    reference: str
    found: PairedTest
    p_adjusted: float

    @property
    def is_drop(self) -> bool:
        gain = self.found.difference.value * (1 if self.measure.higher_is_better else -1)
        return self.p_adjusted < LEVEL and gain < 0

    def __str__(self) -> str:
        difference = f"{self.measure.label} {self.found.difference.value:+.3g} {self.measure.unit}".rstrip()
        told = f"p = {self.p_adjusted:.2g}, effect {self.found.effect.value:+.2f}"
        return f"{difference} against {REFERENCES[self.reference]} ({told})"


def compare(
    rows: Sequence[Row], sets: Sequence[str], references: Sequence[str], plan: EvaluationPlan
) -> list[Comparison]:
    """Every set by every measure against every reference, where there are MIN_PAIRS values. P-values are adjusted by
    Holm over all of them."""
    found: list[tuple[str, Measure, str, PairedTest]] = []
    for of in sets:
        for measure in MEASURES:
            measured = _measured(rows, of, measure)
            for reference in references if len(measured) >= MIN_PAIRS else ():
                test = paired_drop(
                    column(measured, f"filtered_{measure.name}"),
                    column(measured, f"{reference}_{measure.name}"),
                    higher_is_better=measure.higher_is_better,
                    level=LEVEL,
                    confidence=plan.confidence,
                    seed=plan.seed,
                )
                found.append((of, measure, reference, test))
    adjusted = holm([test.p_value for *_, test in found])
    return [Comparison(*each, p_adjusted=p) for each, p in zip(found, adjusted, strict=True)]


class Summary:
    """All that is found, from rows that are not none."""

    def __init__(self, rows: Sequence[Row], plan: EvaluationPlan) -> None:
        self._rows, self._plan = rows, plan
        self._sets = list(dict.fromkeys(row["set"] for row in rows))
        self._members = {of: [row for row in rows if row["set"] == of] for of in self._sets}
        self._references = [name for name in REFERENCES if f"{name}_psnr" in rows[0]]
        self._read = [row for row in rows if row["filtered_cer"] is not None]
        self._measures = MEASURES if self._read else MEASURES[:-1]
        self._comparisons = compare(rows, self._sets, self._references, plan)

    def verdicts(self) -> list[str]:
        return [*(self._verdict(of) for of in self._sets), self._reading()]

    def figures(self) -> list[Figure]:
        def mean(name: str, rows: Sequence[Row], column_name: str, unit: str = "") -> Figure:
            values = column(rows, column_name)
            found = bootstrap_mean(values, confidence=self._plan.confidence, seed=self._plan.seed)
            return Figure.of(name, found, unit)

        figures = [
            mean(f"tokens of {of}, filtered", found, "tokens", "tokens an image")
            for of, found in self._members.items()
        ]
        if self._read:
            figures.append(mean("character error rate of the originals", self._read, "original_cer"))
        for each in self._comparisons:
            name = f"{each.measure.label} of {each.of}, filtered - {REFERENCES[each.reference]}"
            figures.append(Figure.of(name, each.found.difference, each.measure.unit))
        return figures

    def tables(self) -> list[Table]:
        return [self._tests(), self._means()]

    def plots(self) -> list[Plot]:
        return [
            *(self._differences(each, name) for name in self._references for each in self._measures),
            *(self._effects(name) for name in self._references),
        ]

    def galleries(self) -> list[Gallery]:
        return [self._worst(of) for of in self._sets]

    def images(self) -> Table:
        names = [f"{name}_{each.name}" for name in ("filtered", *self._references) for each in self._measures]
        return image_table(
            self._rows, ["key", "set", "tokens", *names] + (["original_cer"] if self._read else [])
        )

    def _verdict(self, of: str) -> str:
        found = self._members[of]
        start = f"{of}, n = {len(found)}, {column(found, 'tokens').mean():.0f} tokens an image"
        mine = [each for each in self._comparisons if each.of == of]
        if not mine:
            return f"{start}: too few to test, {MIN_PAIRS} are expected."
        told = []
        for what, is_drop in (
            ("significant drop", True),
            ("no significant drop, which is no proof of equality", False),
        ):
            such = "; ".join(str(each) for each in mine if each.is_drop == is_drop)
            if such:
                told.append(f"{what}: {such}")
        return f"{start}: {'; '.join(told)}."

    def _reading(self) -> str:
        known = [row for row in self._rows if row["has_known_text"]]
        if not self._read:
            return "The program tesseract was not found: nothing was read, and character error rates are left out."
        rates = [
            f"{column(self._read, f'{name}_cer').mean():.3f} {told}"
            for name, told in {"original": "in the originals", "filtered": "filtered", **REFERENCES}.items()
            if name not in REFERENCES or name in self._references
        ]
        missed = len(known) - len(self._read)
        told = f"; {missed} more met no program tesseract" if missed else ""
        start = f"Character error rates of Tesseract, mean of {len(self._read)} pictures{told}"
        end = ""
        if column(self._read, "full_cer").mean() > _ILLEGIBLE:
            end = (
                " Most is illegible with all patches too, so that they can hardly show what filtering takes."
            )
        return f"{start}: {', '.join(rates)}.{end}"

    def _tests(self) -> Table:
        rows: list[list[Cell]] = [
            [
                each.of, each.measure.with_unit, REFERENCES[each.reference], each.found.difference.n,
                each.found.difference.value, each.found.difference.low, each.found.difference.high,
                each.found.effect.value, each.found.effect.low, each.found.effect.high,
                each.found.p_value, each.p_adjusted,
                "significant drop" if each.is_drop else "no significant drop",
            ]
            for each in self._comparisons
        ]  # fmt: skip
        columns = ["set", "measure", "reference", "n", "mean difference", "low", "high"]
        columns += ["effect", "effect: low", "effect: high", "p", "p, Holm", "verdict"]
        return Table(
            "tests", "Paired tests", columns, rows,
            note='Filtered minus reference, image by image. One-sided Wilcoxon signed-rank tests of "filtered is not '
            f'worse", adjusted by Holm over all rows, level {LEVEL}; sets of fewer than {MIN_PAIRS} images are not '
            "tested. Effect: matched-pairs rank-biserial correlation, -1 where every image gets worse, 1 where every "
            "image gets better. Crops of one photograph are less independent than the tests take them for.",
        )  # fmt: skip

    def _means(self) -> Table:
        cells: list[list[Cell]] = []
        for of, found in self._members.items():
            if self._read:
                blank = [None] * (len(self._measures) - 1)
                cells.append([of, "original", len(found), None, *blank, _mean(found, "original_cer")])
            for name in ("filtered", *self._references):
                told = REFERENCES.get(name, name)
                tokens = _mean(found, "tokens" if name == "filtered" else f"{name}_tokens")
                means = [_mean(found, f"{name}_{measure.name}") for measure in self._measures]
                cells.append([of, told, len(found), tokens, *means])
        columns = ["set", "decoded", "n", "tokens an image", *(each.with_unit for each in self._measures)]
        return Table("means", "Means", columns, cells)

    def _differences(self, measure: Measure, reference: str) -> Plot:
        series: list[Series] = []
        for of in self._sets:
            found = _measured(self._rows, of, measure)
            if found:
                ours, theirs = (column(found, f"{name}_{measure.name}") for name in ("filtered", reference))
                shares = (np.arange(len(found)) + 0.5) / len(found) * 100
                label = f"{of}, n = {len(found)}"
                series.append(Series(label, shares.tolist(), np.sort(ours - theirs).tolist()))
        worse = "Below" if measure.higher_is_better else "Above"
        return Plot(
            f"difference_{measure.name}_{reference}", f"{measure.label}: filtered - {REFERENCES[reference]}",
            "images, sorted by difference, %", f"difference{f', {measure.unit}' if measure.unit else ''}",
            f"n = {sum(len(each.x) for each in series)} images", series,
            caption=f"{worse} 0 the filtered image is worse.",
        )  # fmt: skip

    def _effects(self, reference: str) -> Plot:
        series, num_images = [], 0
        for of in self._sets:
            mine = {
                each.measure: each.found.effect
                for each in self._comparisons
                if each.of == of and each.reference == reference
            }
            places = [float(place) for place, each in enumerate(self._measures) if each in mine]
            effects = [mine[each] for each in self._measures if each in mine]
            if effects:
                values, low, high = (
                    [getattr(each, name) for each in effects] for name in ("value", "low", "high")
                )
                label = f"{of}, n = {effects[0].n}"
                num_images += effects[0].n
                series.append(Series(label, places, values, low, high, kind="bars"))
        return Plot(
            f"effects_{reference}", f"Effect of filtering: against {REFERENCES[reference]}", "",
            "rank-biserial correlation", f"n = {num_images} images", series,
            caption="-1: every image of the set is worse by the measure, 1: every image is better; with intervals.",
            x_labels=[each.label for each in self._measures],
        )  # fmt: skip

    def _worst(self, of: str) -> Gallery:
        shown = [row for row in self._members[of] if row["original_picture"]]
        shown.sort(key=psnr_gain)
        labels = {"original": "original", "filtered": "filtered"}
        labels |= {name: REFERENCES[name] for name in self._references}
        return Gallery(
            f"Worst: {of}",
            "The images that lose most PSNR by filtering.",
            [
                Exhibit(
                    f"{row['key']} · {row['tokens']} tokens · PSNR {row['filtered_psnr']:.1f} dB, "
                    f"{row['full_psnr']:.1f} dB with all patches",
                    [Pane(label, decode(row[f"{name}_picture"])) for name, label in labels.items()],
                )
                for row in shown[:_NUM_SHOWN]
            ],
        )


def psnr_gain(row: Row) -> float:
    """Of filtering, dB."""
    return row["filtered_psnr"] - row["full_psnr"]


def _measured(rows: Sequence[Row], of: str, measure: Measure) -> list[Row]:
    return [row for row in rows if row["set"] == of and row[f"filtered_{measure.name}"] is not None]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """Of the rows that have a value."""
    found = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(found)) if found else None
