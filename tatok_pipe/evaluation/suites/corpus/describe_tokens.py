"""Where two token datasets are from, what is in them side by side, and whether their numbers of tokens drifted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tatok_pipe import storage
from tatok_pipe.evaluation.findings import Cell, Figure, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites.corpus import comparable
from tatok_pipe.evaluation.suites.corpus.comparison import Comparison, Section
from tatok_pipe.evaluation.suites.corpus.counts import Counts
from tatok_pipe.evaluation.suites.corpus.drift import kolmogorov_smirnov, wasserstein
from tatok_pipe.evaluation.suites.corpus.parts import FIRST, OTHER
from tatok_pipe.report.figures import describe_filter, kept_share
from tatok_pipe.tokens.statistics import perplexity, used_share

_MAX_DIFFERENCES = 4  # settings that the verdict names; the table has the main ones


def describe_origin(comparison: Comparison, plan: EvaluationPlan) -> Section:
    """Whether tokenizer and settings are the same, and the table of both datasets."""
    return Section([_tell_origin(comparison, plan)], tables=[_side_by_side(comparison, plan)])


def describe_tokens(comparison: Comparison, plan: EvaluationPlan) -> Section:
    first, other = (side.statistics for side in comparison.sides)
    num_images = sum(comparison.num_images)
    distance = wasserstein(first.kept_histogram, first.num_globals, other.kept_histogram, other.num_globals)
    unit = f"tokens/{comparison.noun}"
    figures = [
        Figure(f"tokens, {FIRST}", first.mean_tokens, unit, first.num_images),
        Figure(f"tokens, {OTHER}", other.mean_tokens, unit, other.num_images),
        Figure("Wasserstein distance of tokens", distance, "tokens", num_images),
    ]
    sentence = (
        f"{OTHER}= has {other.mean_tokens:.1f} ± {other.std_tokens:.1f} {unit}, {FIRST}= {first.mean_tokens:.1f} ± "
        f"{first.std_tokens:.1f} ({comparison.size}), {distance:.2f} tokens apart (Wasserstein)"
    )
    if comparable.KEPT in comparison.left_out:
        return Section([f"{sentence}."], figures)
    # Crops of one image are alike: there are as many independent values as images.
    images = [
        max(1, side.statistics.num_images // side.spec.crops_per_image) for side in comparison.sides
    ]  # fmt: skip
    found = kolmogorov_smirnov(
        first.kept_histogram, other.kept_histogram, num_independent=(images[0], images[1])
    )
    figures += [
        Figure(comparable.KEPT, found.distance, "", num_images),
        Figure(f"{comparable.KEPT}: p-value", found.p_value, "probability", num_images),
    ]
    level = 1 - plan.confidence
    meaning = "drifted beyond" if found.p_value < level else "show no drift beyond"
    return Section(
        [
            f"{sentence}. Counts of kept patches {meaning} sampling noise: Kolmogorov-Smirnov distance "
            f"{found.distance:.3f}, p = {found.p_value:.2g} at level {level:.2g}."
        ],
        figures,
    )


def _tell_origin(comparison: Comparison, plan: EvaluationPlan) -> str:
    first, other = (side.spec for side in comparison.sides)
    if plan.tokens == plan.other_tokens:
        return f"{FIRST}= and {OTHER}= are the same dataset: all has to be equal ({comparison.size})."
    is_one_tokenizer = first.tokenizer_fingerprint == other.tokenizer_fingerprint
    lines = [
        line for line in first.differences(other) if not line.startswith("tokenizer_fingerprint:")
    ]  # fmt: skip
    shown = "; ".join(lines[:_MAX_DIFFERENCES])
    if len(lines) > _MAX_DIFFERENCES:
        shown += f"; {len(lines) - _MAX_DIFFERENCES} more"
    settings = f"with other settings ({shown})" if lines else "with the same settings"
    ours, theirs = (spec.tokenizer_fingerprint[:12] for spec in (first, other))
    if is_one_tokenizer:
        return f"One tokenizer, {ours}, made both, {settings} ({comparison.size})."
    return (
        f"Two tokenizers, {ours} and {theirs}, made them, {settings} ({comparison.size}). The same code need not mean "
        "the same in both: figures of codes compare their numbers."
    )


def _side_by_side(comparison: Comparison, plan: EvaluationPlan) -> Table:
    urls = {id(comparison.first): plan.tokens, id(comparison.other): plan.other_tokens}

    def kept(side: Counts, place: int) -> int:
        return int(np.flatnonzero(side.statistics.kept_histogram)[place]) + side.spec.num_globals

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    lines: list[tuple[str, Callable[[Counts], Cell]]] = [
        ("dataset", lambda side: storage.redact(str(urls[id(side)]))),
        ("token shards", lambda side: side.num_shards),
        (f"{comparison.noun}s", lambda side: side.statistics.num_images),
        ("quarantined samples", lambda side: side.statistics.num_quarantined),
        (f"tokens/{comparison.noun}, mean", lambda side: side.statistics.mean_tokens),
        (f"tokens/{comparison.noun}, standard deviation", lambda side: side.statistics.std_tokens),
        (f"tokens/{comparison.noun}, least", lambda side: kept(side, 0)),
        (f"tokens/{comparison.noun}, most", lambda side: kept(side, -1)),
        ("share of patches kept", lambda side: kept_share(side.statistics)),
        (f"code entropy, nats/{comparison.noun}", lambda side: side.statistics.mean_entropy_nats),
        (f"dropped of it, nats/{comparison.noun}", lambda side: side.statistics.mean_entropy_dropped_nats),
        (
            f"I(globals; patches), nats/{comparison.noun}",
            lambda side: number(side.statistics.mean_mutual_information_nats),
        ),
        ("global codes, perplexity", lambda side: perplexity(side.statistics.global_code_counts)),
        ("global codes, share used", lambda side: used_share(side.statistics.global_code_counts)),
        ("patch codes, perplexity", lambda side: perplexity(side.statistics.patch_code_counts)),
        ("patch codes, share used", lambda side: used_share(side.statistics.patch_code_counts)),
        ("tokenizer", lambda side: side.spec.tokenizer_fingerprint[:12]),
        ("filter", lambda side: describe_filter(side.spec.dtf)),
        ("global tokens, K", lambda side: side.spec.num_globals),
        ("patches, N", lambda side: side.spec.num_patches),
        ("global codebook", lambda side: side.spec.global_vocab),
        ("patch codebook", lambda side: side.spec.patch_vocab),
        ("image size, px", lambda side: side.spec.image_size),
        ("patch size, px", lambda side: side.spec.patch_size),
        ("crops of an image", lambda side: side.spec.crops_per_image),
    ]
    return Table(
        "datasets", "Side by side", ["", FIRST, OTHER],
        [[title, *(value(side) for side in comparison.sides)] for title, value in lines],
        note="Entropies are those of each tokenizer's own entropy model. Perplexity is exp(entropy) of the frequencies "
        "of the codes: the size of a codebook as rich whose codes are used evenly.",
    )  # fmt: skip
