"""Whether the frequencies of codes drifted between two token datasets, beyond what sampling does."""

from __future__ import annotations

import numpy as np

from tatok_pipe.evaluation.findings import Cell, Figure, Table
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites.corpus import comparable
from tatok_pipe.evaluation.suites.corpus.comparison import Comparison, Section
from tatok_pipe.evaluation.suites.corpus.drift import divergence_nats, split_noise
from tatok_pipe.evaluation.suites.corpus.parts import FIRST, OTHER

MIN_IMAGES = 32  # of each dataset: halves of fewer say little about noise
_NOTE = (
    "The divergence is 0 to 0.693 nats, and of samples hardly ever 0, even of one distribution: its noise is that of "
    "halves of one dataset, so of half as many images. Drift is told otherwise, by squared differences of the "
    "frequencies of codes, which any numbers of images and codes leave comparable. Both datasets are split into halves "
    "by image, in 35 ways: how many times as far are halves of both that share no image apart as halves of one are? "
    "Where both hold the same images, the pairs tell smaller changes."
)


def describe_codes(comparison: Comparison, plan: EvaluationPlan) -> Section:
    verdicts: list[str] = []
    figures: list[Figure] = []
    rows: list[list[Cell]] = []
    left_out: dict[str, str] = {}
    for name, codebook in ((comparable.GLOBAL_CODES, "global"), (comparable.PATCH_CODES, "patch")):
        if name in comparison.left_out:
            continue
        ours, theirs = (
            side.global_groups if codebook == "global" else side.patch_groups for side in comparison.sides
        )
        num_codes = int(ours.sum()), int(theirs.sum())
        if not all(num_codes):
            left_out[name] = f"{num_codes[0]:,} and {num_codes[1]:,} codes"
            continue
        verdict, found, cells = _compare(name, ours, theirs, comparison, plan)
        verdicts.append(f"{codebook.capitalize()} codes: {verdict}")
        figures += found
        rows.append([codebook, *num_codes, *cells])
    share = f"{100 * plan.confidence:g} %"
    columns = [
        "codebook", f"codes, {FIRST}", f"codes, {OTHER}", "Jensen-Shannon divergence, nats",
        "its noise, of halves, nats", "halves of both over halves of one", f"{share} of halves of one below",
        "drift beyond noise",
    ]  # fmt: skip
    note = (
        f"{_NOTE} Of samples of one distribution, about {100 * (1 - plan.confidence):.3g} % are called drift."
    )
    tables = [Table("codes", "Drift of the codes", columns, rows, note)] if rows else []
    return Section(verdicts, figures, tables, left_out)


def _compare(
    name: str, ours: np.ndarray, theirs: np.ndarray, comparison: Comparison, plan: EvaluationPlan
) -> tuple[str, list[Figure], list[Cell]]:
    """Verdict, figures and cells of counts of codes by group of images, (G, V) each."""
    num_images = sum(comparison.num_images)
    divergence = divergence_nats(ours.sum(0), theirs.sum(0))
    figures = [Figure(name, divergence, "nats", num_images)]
    sentence = f"Jensen-Shannon divergence {divergence:.3g} nats"
    enough = min(comparison.num_images) >= MIN_IMAGES
    noise = split_noise(ours, theirs, confidence=plan.confidence) if enough else None
    if noise is None:
        verdict = f"{sentence}; too few {comparison.noun}s to tell drift from noise ({comparison.size})."
        return verdict, figures, [divergence, None, None, None, None]
    figures += [
        Figure(f"{name}: noise of halves", noise.noise_nats, "nats", num_images),
        Figure(f"{name}: halves of both over halves of one", noise.ratio, "", num_images),
    ]
    meaning = "drift beyond sampling noise" if noise.is_drift else "no drift beyond sampling noise"
    verdict = (
        f"{meaning}: halves of both that share no image are {noise.ratio:.2f} times as far apart as halves of one "
        f"dataset, {100 * plan.confidence:g} % of which are below {noise.limit:.2f} times ({comparison.size}). "
        f"{sentence}, where halves of one dataset have {noise.noise_nats:.3g} by sampling alone."
    )
    cells: list[Cell] = [divergence, noise.noise_nats, noise.ratio, noise.limit]
    return verdict, figures, [*cells, "yes" if noise.is_drift else "no"]
