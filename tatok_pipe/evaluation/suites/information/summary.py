"""From the rows of the suite `information` to its figures, tables, plots, pictures and sentences.

Letters: S image size in pixels, N patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from scipy.stats import rankdata

from tatok_pipe.evaluation.findings import Cell, Exhibit, Figure, Gallery, Pane, Plot, Series, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from tatok_pipe.evaluation.suites.base import Row, column
from tatok_pipe.evaluation.suites.information.reliability import reliability
from tatok_pipe.report.gallery import dim_dropped

KEPT_SHARES = (0.9, 0.75, 0.5, 0.25)  # of the patches of the calibration images
BOUNDS = tuple((rule, share) for rule in ("budget", "threshold") for share in KEPT_SHARES)
VARIANTS = {"full": "all patches", "filtered": "the filter", "none": "no patch"}
NUM_SHOWN = 6  # in the gallery; that many pictures are kept of every part
_COLOURS = "viridis"
_ROUNDING_NATS = 1e-6


def bound_name(rule: str, share: float) -> str:
    return f"{rule}_{share:.0%}".removesuffix("%")


class Summary:
    """Sections, in the order of the report; each adds what it found."""

    def __init__(self, rows: list[Row], plan: EvaluationPlan) -> None:
        self.rows, self.plan = rows, plan
        self.count = f"n = {len(rows)} images"
        self.verdicts: list[str] = []
        self.figures: list[Figure] = []
        self.tables: list[Table] = []
        self.plots: list[Plot] = []
        self._information()
        self._calibration()
        self._bounds()
        self._shuffled()

    def _mean(self, name: str, values: np.ndarray, unit: str = "") -> Figure:
        found = bootstrap_mean(values, confidence=self.plan.confidence, seed=self.plan.seed)
        return self._add(Figure.of(name, found, unit))

    def _ratio(self, name: str, above: np.ndarray, below: np.ndarray) -> Figure:
        found = bootstrap_ratio(above, below, confidence=self.plan.confidence, seed=self.plan.seed)
        return self._add(Figure.of(name, found))

    def _share(self, name: str, holds: np.ndarray) -> Figure:
        return self._mean(name, holds.astype(np.float64), "of the images")

    def _add(self, figure: Figure) -> Figure:
        self.figures.append(figure)
        return figure

    def _information(self) -> None:
        readings = {
            "Î(G;P), by entropies": column(self.rows, "information_nats"),
            "gain by surprisals": column(self.rows, "gain_nats"),
        }
        believed, gained = (self._mean(name, values, "nats an image") for name, values in readings.items())
        shares = [
            self._share(f"images above 0: {name}", values > 0).value for name, values in readings.items()
        ]
        self.verdicts.append(
            f"Î(G;P) is {_show(believed)} nats an image by the model's entropies, above 0 on {shares[0]:.0%} of "
            f"{len(self.rows)} images; by surprisals globals shorten the patch codes by {_show(gained)} nats, on "
            f"{shares[1]:.0%} of the images: {_sign(gained, 'a gain', 'a loss')}."
        )
        values = np.concatenate(list(readings.values()))
        edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-3), 21)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        self.plots.append(
            Plot(
                "information", "What globals tell about the patches", "nats an image", "images", self.count,
                [
                    Series(name, middles, np.histogram(each, edges)[0].tolist(), kind="bars")
                    for name, each in readings.items()
                ],
                caption="Î(G;P): what the entropy model believes, its entropies without globals less those with them. "
                "Gain: what it is worth, its surprisals without globals less those with them.",
            )
        )  # fmt: skip

    def _calibration(self) -> None:
        entropy, surprisal = column(self.rows, "entropy_nats"), column(self.rows, "surprisal_nats")
        ratio = self._ratio("surprisal over entropy, with globals", surprisal, entropy)
        self._ratio(
            "surprisal over entropy, without globals",
            column(self.rows, "alone_surprisal_nats"), column(self.rows, "alone_entropy_nats"),
        )  # fmt: skip
        self._mean("entropy of the patch codes", entropy, "nats an image")
        self._mean("surprisal of the patch codes", surprisal, "nats an image")
        grids = [np.asarray(row["grid"], np.float64) for row in self.rows if row["grid"] is not None]
        sums = np.sum(grids, axis=0).reshape(3, -1)
        curve, num_codes = reliability(sums), int(sums[0].sum())
        error = self._add(
            Figure("expected calibration error", curve.expected_error, "nats a code", num_codes)
        )
        largest = np.abs(curve.surprisal - curve.entropy).max()
        self.verdicts.append(
            f"Mean surprisal is {_show(ratio, 3)} of mean entropy: calibrated within {abs(ratio.value - 1):.1%} on "
            f"average; within bins of equal entropy it is off by {error.value:.2f} nats a code on average, by "
            f"{largest:.2f} at most ({num_codes:,} codes)."
        )
        self.plots.append(
            Plot(
                "calibration", "Calibration of the entropy model", "mean entropy of a bin, nats a code",
                "mean surprisal, nats a code", f"n = {num_codes:,} codes of {len(self.rows)} images",
                [Series("codes by predicted entropy", curve.entropy.tolist(), curve.surprisal.tolist())],
                caption=f"{len(curve.count)} bins of about equal numbers of codes. Above the dotted line the model is "
                "too sure of itself, below it too careful.",
                has_diagonal=True,
            )
        )  # fmt: skip

    def _bounds(self) -> None:
        cells: list[list[Cell]] = []
        series, exceeded, ratios, mask_bits = [], {}, {}, []
        for rule in ("budget", "threshold"):
            points: list[tuple[float, Figure]] = []
            for share in KEPT_SHARES:
                name, told = bound_name(rule, share), f"{rule} that keeps {share:.0%}"
                value = self.rows[0][f"{name}_value"]
                dropped, measured = (
                    column(self.rows, f"{name}_{which}_nats") for which in ("dropped", "measured")
                )
                # What is to bound the surprisal: the budget, or, where there is none, the model's own entropies.
                limit = np.full_like(dropped, value) if rule == "budget" else dropped
                mean = self._mean(f"{told}: surprisal of dropped codes", measured, "nats an image")
                told_limit = "ε" if rule == "budget" else "their entropy"
                ratio = self._ratio(f"{told}: surprisal of dropped codes over {told_limit}", measured, limit)
                exceeds = self._share(
                    f"{told}: surprisal above {told_limit}", measured > limit + _ROUNDING_NATS
                )
                held = float((dropped <= limit + _ROUNDING_NATS).mean())
                bits = float(column(self.rows, f"{name}_mask_bits").mean())
                cells.append(
                    [
                        rule, share, value, float(column(self.rows, f"{name}_kept").mean()),
                        float(dropped.mean()), held if rule == "budget" else None, mean.value, ratio.value,
                        exceeds.value, bits,
                    ]
                )  # fmt: skip
                points.append((float(limit.mean()), mean))
                exceeded[name], ratios[name] = exceeds.value, ratio.value
                mask_bits.append(bits)
            points.sort(key=lambda point: point[0])
            means = [mean for _, mean in points]
            series.append(
                Series(
                    "budget: by ε" if rule == "budget" else "threshold: by entropy of the dropped codes",
                    [x for x, _ in points], [mean.value for mean in means],
                    low=[mean.low or 0.0 for mean in means], high=[mean.high or 0.0 for mean in means],
                )
            )  # fmt: skip
        self.tables.append(
            Table(
                "bound", "Nats that filtering by entropy drops",
                [
                    "rule", "kept share asked", "value, nats", "patches kept", "entropy dropped, nats",
                    "images within ε", "surprisal of dropped, nats", "surprisal / limit", "images above limit",
                    "choice of patches, bits",
                ],
                cells,
                note="Means over images. The limit is ε for budget, and the model's entropy of what it drops for "
                "threshold, which decides on a code by what comes before it alone. The mean surprisal of dropped "
                "codes, given globals and all codes before them, bounds from above what a receiver of the mask and the "
                "kept codes lacks, however good the model is. That ε, or the entropies, bound it takes a calibrated "
                "model and a mask that does not depend on the dropped codes; one image may exceed it by chance. The "
                "last column is log2 of the number of choices.",
            )
        )  # fmt: skip
        self.plots.append(
            Plot(
                "bound", "Nats dropped, as bounded and as measured", "limit, nats an image",
                "surprisal of dropped codes, nats an image", self.count, series,
                caption="Below the dotted line what is lost is less than the limit says.", has_diagonal=True,
            )
        )  # fmt: skip

        def spread(values: dict[str, float], rule: str, form: str) -> str:
            of_rule = [value for name, value in values.items() if name.startswith(rule)]
            return _range(of_rule, form)

        is_kept = all(cell[5] == 1 for cell in cells if cell[0] == "budget")
        num_held = sum(ratio <= 1 for name, ratio in ratios.items() if name.startswith("budget"))
        self.verdicts.append(
            f"Budget: the entropies of dropped codes {'stay' if is_kept else 'do not stay'} within ε on all images; "
            f"their surprisals are {spread(ratios, 'budget', '.2f')} of ε on average, within it at {num_held} of "
            f"{len(KEPT_SHARES)} budgets, and exceed it on {spread(exceeded, 'budget', '.0%')} of the images. The rule "
            f"sorts, so its mask is information too: up to {_range(mask_bits[: len(KEPT_SHARES)], '.0f')} bits an "
            "image that the bound does not count."
        )
        self.verdicts.append(
            "Threshold on entropy, a causal rule: surprisals of dropped codes are "
            f"{spread(ratios, 'threshold', '.2f')} of their entropies on average, and exceed them on "
            f"{spread(exceeded, 'threshold', '.0%')} of the images."
        )

    def _shuffled(self) -> None:
        rows = [row for row in self.rows if row["other_surprisal_nats"] is not None]
        if not rows:
            self.verdicts.append("No part has two images: globals were not shuffled.")
            return
        cells: list[list[Cell]] = []
        told: list[str] = []
        for variant, label in VARIANTS.items():
            own, other = (column(rows, f"{variant}_{whose}_psnr") for whose in ("own", "other"))
            loss = self._mean(f"another image's globals, {label}: loss of PSNR", own - other, "dB")
            share = self._share(f"another image's globals, {label}: images that lose", own > other)
            cells.append(
                [label, float(own.mean()), float(other.mean()), loss.value, loss.low, loss.high, share.value]
            )
            told.append(f"{_show(loss)} dB with {label}")
        change = self._mean(
            "another image's globals: surprisal of the patch codes, more",
            column(rows, "other_surprisal_nats") - column(rows, "surprisal_nats"),
            "nats an image",
        )
        share = self._share(
            "another image's globals: images with more surprisal",
            column(rows, "other_surprisal_nats") > column(rows, "surprisal_nats"),
        )
        self.tables.append(
            Table(
                "shuffled", "Another image's globals",
                [
                    "decoded with", "PSNR, own globals, dB", "PSNR, another's, dB", "loss, dB", "low", "high",
                    "images that lose",
                ],
                cells,
                note=f"Means over {len(rows)} images; low and high: {self.plan.confidence:.0%} interval of the loss.",
            )
        )  # fmt: skip
        self.verdicts.append(
            f"Another image's globals cost {', '.join(told)}, and {_show(change)} nats an image of patch codes, on "
            f"{share.value:.0%} of {len(rows)} images."
        )

    def gallery(self) -> Gallery:
        """The first images of the first parts."""
        shown = [row for row in self.rows if row["picture"] is not None]
        shown = sorted(shown, key=lambda row: row["place"])[:NUM_SHOWN]
        highest = max(float(np.max(row["patch_entropy"])) for row in shown)
        score = self.plan.filter.score
        return Gallery(
            "Where the information is",
            f"Entropy from 0 (dark) to {highest:.1f} nats (bright), given globals and the patches before it, row by "
            f"row; the score {score} by its rank within the image; what the filter keeps "
            f"({self.plan.filter.rule} {self.plan.filter.value:.4g}).",
            [self._exhibit(row, highest) for row in shown],
        )  # fmt: skip

    def _exhibit(self, row: Row, highest: float) -> Exhibit:
        size = self.plan.image_size
        original = np.frombuffer(row["picture"], np.uint8).reshape(size, size, 3)
        entropy, cost, keep = (
            np.asarray(row[f"patch_{name}"], np.float64) for name in ("entropy", "cost", "keep")
        )
        kept = np.flatnonzero(keep)
        return Exhibit(
            f"{row['key']} · {entropy.sum():.0f} nats, {entropy.min():.1f} to {entropy.max():.1f} a patch · "
            f"{len(kept)} of {len(keep)} patches kept, {entropy[keep == 0].sum():.0f} nats dropped · "
            f"Î {row['information_nats']:+.1f} nats",
            [
                Pane("original", original),
                Pane("entropy", draw_map(entropy / max(highest, _ROUNDING_NATS), image_size=size)),
                Pane(
                    self.plan.filter.score, draw_map((rankdata(cost) - 1) / len(cost), image_size=size)
                ),
                Pane("kept", dim_dropped(original, kept, patch_size=size // math.isqrt(len(keep)))),
            ],
        )  # fmt: skip


def draw_map(values: np.ndarray, *, image_size: int) -> np.ndarray:
    """Values of patches (N,) in [0, 1], from dark to bright, as a picture (S, S, 3) uint8."""
    side = math.isqrt(len(values))
    colours = matplotlib.colormaps[_COLOURS](values.reshape(side, side), bytes=True)[..., :3]
    return colours.repeat(image_size // side, axis=0).repeat(image_size // side, axis=1)


def _show(figure: Figure, digits: int = 2) -> str:
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _sign(figure: Figure, above: str, below: str) -> str:
    """What the interval says of the sign."""
    assert figure.low is not None and figure.high is not None
    if figure.low > 0:
        return above
    return below if figure.high < 0 else "not told apart from 0"


def _range(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"
