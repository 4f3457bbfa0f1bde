"""What a generator draws, beside real images: distances between the sets, lengths of the images, pictures.

Letters: B images, S image size in pixels, K globals, N patches.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from tatok_pipe.ar.generation.exports import decode, encode_image
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.drawing import PART_IMAGES
from tatok_pipe.evaluation.findings import (
    Cell,
    Exhibit,
    Figure,
    Findings,
    Gallery,
    Pane,
    Plot,
    Series,
    Table,
)
from tatok_pipe.evaluation.metrics import inception_score
from tatok_pipe.evaluation.pictures import to_pixels
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import Interval, bootstrap_mean
from tatok_pipe.evaluation.suites.base import PictureSuite, Row, column, image_table
from tatok_pipe.evaluation.suites.generation.image_sets import (
    MIN_IMAGES,
    EqualCounts,
    ImageSet,
    Likeness,
    at_equal_counts,
    compare,
)

logger = logging.getLogger(__name__)

NUM_SHOWN = 12
_MAX_BINS = 20


class Generation(PictureSuite):
    """Sets: `adaptive`, of the generator; `baseline`, of the baseline's; `real`, the images of the plan."""

    name = "generation"

    def missing(self, plan: EvaluationPlan) -> str:
        if plan.generator is None:
            return "generator=, a generator of this tokenizer's tokens"
        return super().missing(plan)

    def parts(self, plan: EvaluationPlan) -> list[str]:
        num_parts = math.ceil(plan.num_generated / PART_IMAGES)
        drawn = ["gen"] if plan.baseline_generator is None else ["gen", "base"]
        names = [f"{kind}-{place:06d}" for kind in drawn for place in range(num_parts)]
        return names + [f"real-{place}" for place in super().parts(plan)]

    def measure(self, part: str, bench: Bench) -> list[Row]:
        kind, _, place = part.partition("-")
        if kind == "real":
            return list(self._real(place, bench))
        start = time.monotonic()
        rows = list(self._drawn("adaptive" if kind == "gen" else "baseline", int(place), bench))
        seconds = time.monotonic() - start
        # Told and not stored: findings are the same on every machine.
        logger.info(
            "%s: %d images, %d tokens in %.1f s, features included: %.2f images/s",
            part, len(rows), sum(row["num_tokens"] for row in rows), seconds, len(rows) / seconds,
        )  # fmt: skip
        return rows

    def _drawn(self, told: str, part: int, bench: Bench) -> Iterator[Row]:
        drawing = bench.generator if told == "adaptive" else bench.baseline_generator
        assert drawing is not None, "what the plan does not name has no part"
        spec = drawing.generator.tokens
        for group in drawing.groups(part, touch=bench.touch):
            # As their files have them, in 8 bits, like the real ones.
            images = (group.images * 255).round() / 255
            rows = _measured(told, images, [tokens.num_tokens for tokens in group.tokens], bench)
            for place, row in enumerate(rows):
                number = group.tokens[place].number
                picture = encode_image(to_pixels(images[place]), "png") if number < NUM_SHOWN else None
                yield row | {
                    "key": f"{number:06d}",
                    "label": group.labels[place],
                    "picture": picture,
                    "full_tokens": spec.num_globals + spec.num_patches,
                    "condition": drawing.generator.model.config.condition,
                    "num_classes": drawing.num_classes,
                    "has_filter": drawing.has_filter(bench.plan.filter),
                }

    def _real(self, place: str, bench: Bench) -> Iterator[Row]:
        model, number = bench.tokenizer.model, 0
        num_shown = math.ceil(NUM_SHOWN / len(bench.plan.sources))
        for pictures, images in self.batches(place, bench):
            num_kept = model.tokenize(images, bench.plan.filter).keep.sum(1)
            rows = _measured("real", images, (num_kept + model.config.num_globals).tolist(), bench)
            for picture, row in zip(pictures, rows, strict=True):
                shown = encode_image(picture.pixels, "png") if number < num_shown else None
                yield row | {"key": picture.key, "label": picture.label, "picture": shown}
                number += 1

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        """Raises UserError where fewer than two real images could be read."""
        by_set: dict[str, list[Row]] = {}
        for row in rows:
            by_set.setdefault(row["set"], []).append(row)
        real_rows = by_set.pop("real", [])
        if len(real_rows) < MIN_IMAGES:
            raise UserError(f"data={plan.data}: {len(real_rows)} images could be read; expected at least two")
        real, drawn = _to_set(real_rows), {told: _to_set(own) for told, own in by_set.items()}
        likeness = {told: compare(each, real) for told, each in drawn.items()}
        equal = at_equal_counts(drawn, real, seed=plan.seed)
        figures = [
            *_likeness_figures(likeness, equal, plan),
            Figure(f"{plan.features.score_name}, real", inception_score(real.logits), "", len(real)),
            *_length_figures(by_set, real_rows, plan),
        ]
        plots = [_histogram(by_set["adaptive"], real_rows), _cumulative(by_set["adaptive"], real_rows)]
        return Findings(
            self.name,
            f"{len(drawn['adaptive'])} generated images beside {len(real)} real ones",
            verdicts=_verdicts(figures, equal, by_set, plan),
            figures=figures,
            tables=[_equal_table(equal, plan)] if equal.counts else [],
            plots=[*plots, _by_count(equal, plan)] if equal.counts else plots,
            galleries=[_samples(by_set), _real_samples(real_rows)],
            images=image_table(rows, ["set", "key", "label", "num_tokens"]),
        )


def _measured(told: str, images: Tensor, num_tokens: list[int], bench: Bench) -> list[Row]:
    found = bench.features(images)
    return [
        {"set": told, "num_tokens": count, "features": vector, "logits": logits}
        for count, vector, logits in zip(num_tokens, found.vectors, found.logits, strict=True)
    ]


def _to_set(rows: list[Row]) -> ImageSet:
    return ImageSet(column(rows, "features"), column(rows, "logits"))


def _likeness_figures(
    likeness: dict[str, Likeness], equal: EqualCounts, plan: EvaluationPlan
) -> list[Figure]:
    distance, score = plan.features.distance_name, plan.features.score_name
    figures = []
    for told, each in likeness.items():
        named = {f"g{distance}": each.distance, score: each.score, "precision": each.precision}
        named["recall"] = each.recall
        figures += [Figure(f"{name}, {told}", value, "", each.num_images) for name, value in named.items()]
    if equal.counts:
        count = equal.counts[-1]
        figures += [
            Figure(f"g{distance}, {told}, n of the floor", along[-1].distance, "", count)
            for told, along in equal.drawn.items()
        ]
        figures.append(
            Figure(f"{distance}, floor: halves of the real images", equal.floor[-1].distance, "", count)
        )
    return figures


def _length_figures(by_set: dict[str, list[Row]], real_rows: list[Row], plan: EvaluationPlan) -> list[Figure]:
    def mean(rows: list[Row]) -> Interval:
        return bootstrap_mean(column(rows, "num_tokens"), confidence=plan.confidence, seed=plan.seed)

    figures = [
        Figure.of(f"tokens, {told}", mean(rows), "tokens an image")
        for told, rows in (*by_set.items(), ("real", real_rows))
    ]
    adaptive = by_set["adaptive"]
    # scipy's p-value is of continuous lengths; of counts, which tie, it is too large rather than too small.
    found: Any = stats.ks_2samp(column(adaptive, "num_tokens"), column(real_rows, "num_tokens"))
    figures += [
        Figure("lengths, generated against real: KS statistic", float(found.statistic), "", len(adaptive)),
        Figure("lengths, generated against real: KS p-value", float(found.pvalue), "", len(adaptive)),
    ]
    full = adaptive[0]["full_tokens"]
    figures += [
        _speed_ratio("against all tokens", full, mean(adaptive)),
        _speed_ratio("against all tokens, at the lengths of real images", full, mean(real_rows)),
    ]
    if "baseline" in by_set:
        full = by_set["baseline"][0]["full_tokens"]
        figures.append(_speed_ratio("against the baseline's fixed number", full, mean(adaptive)))
    return figures


def _speed_ratio(told: str, full_tokens: int, tokens: Interval) -> Figure:
    """A step gives one token or, the last one of an adaptive image, END, which a fixed number needs none of."""
    ratio, low, high = (full_tokens / (steps + 1) for steps in (tokens.value, tokens.high, tokens.low))
    return Figure(f"expected speed ratio by steps, {told}", ratio, "times", tokens.n, low, high)


def _verdicts(
    figures: list[Figure], equal: EqualCounts, by_set: dict[str, list[Row]], plan: EvaluationPlan
) -> list[str]:
    distance, adaptive = plan.features.distance_name, by_set["adaptive"]
    by_name = {figure.name: figure for figure in figures}
    name = f"g{distance}, adaptive"
    num_real = by_name["tokens, real"].n
    told = f"g{distance} of {by_name[name].n} generated images to {num_real} real ones: {by_name[name].value:.4g}."
    if equal.counts:
        floor, count = equal.floor[-1].distance, equal.counts[-1]
        told += (
            f" At n = {count} on both sides it is {equal.drawn['adaptive'][-1].distance:.4g}, and between two halves "
            f"of the real images {floor:.4g}: so much comes with n alone."
        )
    told += (
        " Few images make such a distance too large: compare it at equal n, features and real images only, and never "
        "with published figures, which are of 50,000 images."
    )
    verdicts = [told]
    if "baseline" in by_set:
        ours, theirs = by_name[name], by_name[f"g{distance}, baseline"]
        order = {-1: "below", 0: "equal to", 1: "above"}[int(np.sign(ours.value - theirs.value))]
        verdicts.append(
            f"Adaptive tokens give a g{distance} {order} the baseline's: {ours.value:.4g} and {theirs.value:.4g}, at "
            f"n = {ours.n} each. One draw without an interval: it says something of the tokens where both generators "
            "have equal size and training, and where the gap holds for other seeds."
        )
        fixed, drawn = by_set["baseline"][0]["full_tokens"], by_name["tokens, baseline"].value
        if drawn < fixed:
            verdicts.append(
                f"The baseline ends its images at {drawn:.1f} tokens on average instead of its fixed {fixed}: it was "
                "not trained on unfiltered tokens, or not long enough to know that images have them all."
            )
    generated, real = by_name["tokens, adaptive"], by_name["tokens, real"]
    statistic, p_value = (
        by_name[f"lengths, generated against real: KS {each}"].value for each in ("statistic", "p-value")
    )
    found = "differ in distribution" if p_value < 1 - plan.confidence else "show no difference at this n"
    verdicts.append(
        f"Lengths of generated and real images {found}: {generated.value:.1f} and {real.value:.1f} tokens on average, "
        f"Kolmogorov-Smirnov D = {statistic:.3f}, p = {p_value:.2g} (n = {generated.n} and {real.n})."
    )
    full = adaptive[0]["full_tokens"]
    steps, real_steps = (
        by_name[f"expected speed ratio by steps, against all tokens{each}"].value
        for each in ("", ", at the lengths of real images")
    )
    verdicts.append(
        f"{generated.value:.1f} tokens an image and END instead of all {full}: {steps:.2f} times fewer steps; images "
        f"as long as the real ones would take {real_steps:.2f} times fewer. Expected from counts, not measured."
    )
    if not adaptive[0]["has_filter"]:
        verdicts.append(
            "The generator was trained on tokens of another filter than the one that is evaluated: its lengths need "
            "not be those of the real images. Give dtf.* of its token dataset."
        )
    if adaptive[0]["condition"] == "embedding":
        verdicts.append(
            "The generator knows embeddings, and was drawn without any: no measure of what it draws with."
        )
    num_classes = adaptive[0]["num_classes"]
    if num_classes > len(adaptive):
        verdicts.append(
            f"The first {len(adaptive)} of {num_classes} classes alone were drawn, the real images are of any: draw at "
            f"least generation.num_images={num_classes}."
        )
    return verdicts


def _equal_table(equal: EqualCounts, plan: EvaluationPlan) -> Table:
    sides = {**equal.drawn, "real, the other half": equal.floor}
    rows: list[list[Cell]] = []
    for place, count in enumerate(equal.counts):
        for told, along in sides.items():
            each = along[place]
            rows.append([count, told, each.distance, each.score, each.precision, each.recall])
    return Table(
        "equal_n",
        "Beside one half of the real images, at equal n",
        ["n", "images", plan.features.distance_name, plan.features.score_name, "precision", "recall"],
        rows,
        note="Only rows of one n compare. The other half of the real images is what a perfect generator would reach, "
        "or better than that where the corpus holds several crops of one photograph. Precision and recall are the "
        "improved ones (third neighbour, arXiv 1904.06991); real images come as the corpus has them, generated ones "
        "class by class in turn.",
    )  # fmt: skip


def _by_count(equal: EqualCounts, plan: EvaluationPlan) -> Plot:
    sides = {**equal.drawn, "real, other half": equal.floor}
    name = plan.features.distance_name
    return Plot(
        "distance_by_n",
        "Distance to one half of the real images",
        "images on each side",
        name,
        f"up to n = {equal.counts[-1]} images on each side",
        [
            Series(told, [float(count) for count in equal.counts], [each.distance for each in along])
            for told, along in sides.items()
        ],
        caption="Falls with n although the images stay the same: the bias of few images.",
    )


def _histogram(generated: list[Row], real: list[Row]) -> Plot:
    lengths = {"generated": column(generated, "num_tokens"), "real": column(real, "num_tokens")}
    edges = np.histogram_bin_edges(np.concatenate([*lengths.values()]), bins=_MAX_BINS)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return Plot(
        "lengths", "Tokens of an image", "tokens", "share of the images, %", _counts(generated, real),
        [
            Series(told, middles, (100 * np.histogram(each, edges)[0] / len(each)).tolist(), kind="bars")
            for told, each in lengths.items()
        ],
    )  # fmt: skip


def _cumulative(generated: list[Row], real: list[Row]) -> Plot:
    series = []
    for told, rows in (("generated", generated), ("real", real)):
        found = stats.ecdf(column(rows, "num_tokens")).cdf
        series.append(Series(told, found.quantiles.tolist(), (100 * found.probabilities).tolist()))
    return Plot(
        "lengths_cumulative", "Images up to so many tokens", "tokens", "share of the images, %",
        _counts(generated, real), series,
        caption="The largest gap between the lines is the Kolmogorov-Smirnov statistic.",
    )  # fmt: skip


def _counts(generated: list[Row], real: list[Row]) -> str:
    return f"n = {len(generated)} generated and {len(real)} real images"


def _samples(by_set: dict[str, list[Row]]) -> Gallery:
    exhibits = []
    for group in zip(*by_set.values(), strict=True):
        if group[0]["picture"]:
            panes = [
                Pane(f"{row['set']}, {row['num_tokens']} tokens", decode(row["picture"])) for row in group
            ]
            exhibits.append(Exhibit(f"image {int(group[0]['key'])}{_class(group[0])}", panes))
    return Gallery("Generated images", "The first ones, not chosen; classes in turn.", exhibits)


def _real_samples(rows: list[Row]) -> Gallery:
    shown = [row for row in rows if row["picture"]][:NUM_SHOWN]
    return Gallery(
        "Real images",
        "The first ones of every shard, as they are, with the tokens that the filter leaves them.",
        [
            Exhibit(
                f"{row['key']}{_class(row)}",
                [Pane(f"real, {row['num_tokens']} tokens", decode(row["picture"]))],
            )
            for row in shown
        ],
    )


def _class(row: Row) -> str:
    return "" if row["label"] is None else f" · class {row['label']}"
