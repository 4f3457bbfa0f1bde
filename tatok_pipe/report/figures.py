"""The figures of a token dataset as numbers and as lines of text. Maths only: no disk.

Letters: K globals, M kept of N patches, V_g and V_p codebook sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tatok_pipe.report.inventory import Inventory
from tatok_pipe.tokenizer.scores.base import NATS
from tatok_pipe.tokenizer.scores.table import SCORES
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics, perplexity, used_share

PERCENTILES = (5, 25, 50, 75, 95)
RATE_FORMULA = "K log2 V_g + M log2 V_p + log2 C(N, M) bits an image"


@dataclass(frozen=True)
class Rate:
    """Mean bits an image by `RATE_FORMULA`: every code at fixed length, and which positions were kept."""

    code_bits: float
    position_bits: float

    @property
    def bits(self) -> float:
        return self.code_bits + self.position_bits


def token_rate(statistics: ShardStatistics) -> Rate:
    """The rate of the tokens, entropy coding of the codes aside; NaN without images."""
    num_globals, num_patches, global_vocab, patch_vocab = statistics.shape
    images = statistics.num_images
    if not images:
        return Rate(math.nan, math.nan)
    kept = np.arange(num_patches + 1)
    mean_kept = float(kept @ statistics.kept_histogram) / images
    choices = np.array([_log2_binomial(num_patches, count) for count in range(num_patches + 1)])
    return Rate(
        code_bits=num_globals * math.log2(global_vocab) + mean_kept * math.log2(patch_vocab),
        position_bits=float(choices @ statistics.kept_histogram) / images,
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of (n,) and (n,), ties at their mean rank; NaN where a rank never changes or n < 3."""
    if len(a) < 3:
        return math.nan
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


@dataclass(frozen=True)
class SourceSizes:
    """A sample of rows with the size of the image that each came from. All columns (n,)."""

    num_tokens: np.ndarray
    num_bytes: np.ndarray  # of the encoded source image
    num_pixels: np.ndarray  # width × height of the source image
    is_jpeg: np.ndarray  # bool
    num_shards: int = 0  # that the rows were taken from
    is_complete: bool = False  # whether these are all rows of the dataset
    problems: tuple[str, ...] = ()  # of image shards that could not be read

    def correlation(self) -> float:
        """Spearman correlation of tokens with bytes per pixel, of JPEGs: other formats measure otherwise."""
        bytes_per_pixel = self.num_bytes / np.maximum(self.num_pixels, 1)
        return spearman(self.num_tokens[self.is_jpeg], bytes_per_pixel[self.is_jpeg])

    @property
    def num_jpegs(self) -> int:
        return int(self.is_jpeg.sum())


def figure_lines(spec: TokenSpec, inventory: Inventory, sizes: SourceSizes) -> list[tuple[str, str]]:
    """(label, value) of all figures, in the order in which they are shown."""
    statistics = inventory.statistics
    lines = [
        ("tokenizer", f"{spec.tokenizer_fingerprint[:12]}, {describe_geometry(spec)}"),
        ("filter", describe_filter(spec.dtf)),
        ("shards", describe_shards(inventory)),
        ("images", describe_images(spec, statistics)),
        ("quarantined", _describe_quarantine(statistics)),
    ]
    if statistics.num_images:
        lines += _describe_tokens(statistics)
        lines += _describe_rate(spec, inventory)
        lines.append(("JPEG bytes/pixel", describe_correlation(sizes)))
    return lines


def describe_images(spec: TokenSpec, statistics: ShardStatistics) -> str:
    """How many; where an image has several rows, also these, which all other figures are of."""
    rows, per_image = statistics.num_images, spec.crops_per_image
    if per_image == 1:
        return f"{rows:,}"
    return f"{rows // per_image:,}, as {rows:,} crops, {per_image} of each; all figures are of crops"


def describe_geometry(spec: TokenSpec) -> str:
    return (
        f"{spec.num_globals} global and up to {spec.num_patches} patch tokens, "
        f"images of {spec.image_size} px in patches of {spec.patch_size} px"
    )


def describe_filter(dtf: FilterSpec) -> str:
    """`threshold on entropy, value 2.845 nats, at least 1 patch`."""
    if dtf.rule == "none":
        return "none: all patches are kept"
    in_nats = dtf.score in SCORES and SCORES[dtf.score].unit == NATS
    unit = {"top_k": " patches", "coverage": "", "proportional": ""}.get(dtf.rule, " nats" if in_nats else "")
    floor = f"at least {count(dtf.min_patches, 'patch', 'patches')}"
    return f"{dtf.rule} on {dtf.score}, value {dtf.value:.4g}{unit}, {floor}"


def describe_correlation(sizes: SourceSizes) -> str:
    """Tokens against JPEG bytes per pixel in a few words, n included."""
    value = sizes.correlation()
    if math.isnan(value):
        return f"no correlation: {count(sizes.num_jpegs, 'JPEG')} sampled, 3 are needed that differ in both"
    return f"Spearman {value:.2f} with tokens/image (n = {sizes.num_jpegs:,})"


def factor_saved(statistics: ShardStatistics) -> float:
    """How many times more tokens a fixed-rate tokenizer, K + N an image, spends; NaN without images."""
    return (statistics.num_globals + statistics.num_patches) / statistics.mean_tokens


def kept_share(statistics: ShardStatistics) -> float:
    """The share of patches that were kept; NaN without images."""
    return (statistics.mean_tokens - statistics.num_globals) / statistics.num_patches


def dropped_share(statistics: ShardStatistics) -> float:
    """The share of the code entropy that was dropped; 0 where there is none."""
    total = statistics.entropy_total_units
    return statistics.entropy_dropped_units / total if total else 0.0


def format_bytes(num_bytes: float) -> str:
    """1234567 as `1.23 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5:
            decimals = 0 if unit == "B" or num_bytes >= 99.95 else 1 if num_bytes >= 9.995 else 2
            return f"{num_bytes:.{decimals}f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.0f} PB"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 image`, `1,234 images`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def describe_shards(inventory: Inventory) -> str:
    """Planned, committed, missing and failed shards, counted."""
    planned = "an unknown number" if inventory.num_planned is None else f"{inventory.num_planned:,}"
    text = (
        f"{planned} planned, {len(inventory.shards):,} committed, {len(inventory.missing):,} missing, "
        f"{len(inventory.failed):,} failed"
    )
    return text + (" (no run has finished)" if inventory.num_planned is None else "")


def _describe_quarantine(statistics: ShardStatistics) -> str:
    reasons = ", ".join(
        f"{error} {number:,}" for error, number in by_frequency(statistics.quarantine_reasons)
    )
    return f"{statistics.num_quarantined:,}" + (f": {reasons}" if reasons else "")


def by_frequency(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Quarantine reasons, the most frequent first."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def _describe_tokens(statistics: ShardStatistics) -> list[tuple[str, str]]:
    percentiles = ", ".join(f"p{p} {statistics.token_percentile(p):,}" for p in PERCENTILES)
    fixed = statistics.num_globals + statistics.num_patches
    lines = [
        ("tokens/image", f"{statistics.mean_tokens:.1f} ± {statistics.std_tokens:.1f} ({percentiles})"),
        ("kept patches", percent(kept_share(statistics))),
        ("fixed rate", f"{fixed:,} tokens/image, {factor_saved(statistics):.2f} times as many"),
        (
            "entropy",
            f"{statistics.mean_entropy_nats:,.1f} nats/image, {statistics.mean_entropy_dropped_nats:,.1f} dropped "
            f"({percent(dropped_share(statistics))})",
        ),
    ]
    if statistics.mutual_information_count:
        information = f"{statistics.mean_mutual_information_nats:z.2f} nats/image"
        lines.append(("I(globals; patches)", information))
    for name, counts in (
        ("global codes", statistics.global_code_counts),
        ("patch codes", statistics.patch_code_counts),
    ):
        lines.append((name, describe_codes(counts)))
    return lines


def describe_codes(counts: np.ndarray) -> str:
    """Use and perplexity of a codebook of counts (V,)."""
    return f"{percent(used_share(counts))} of {len(counts):,} used, perplexity {perplexity(counts):,.1f}"


def _describe_rate(spec: TokenSpec, inventory: Inventory) -> list[tuple[str, str]]:
    statistics = inventory.statistics
    stored, source = inventory.token_bytes, statistics.bytes_in
    share = f" ({percent(stored / source)})" if source else ""
    rate = token_rate(statistics)
    pixels = spec.image_size**2
    return [
        (
            "bytes",
            f"{format_bytes(stored)} of token shards from {format_bytes(source)} of image shards{share}",
        ),
        (
            "rate",
            f"{rate.bits / pixels:.4f} bits/pixel = {rate.code_bits / pixels:.4f} codes + "
            f"{rate.position_bits / pixels:.4f} kept positions ({RATE_FORMULA})",
        ),
    ]


def _log2_binomial(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def format_lines(lines: Sequence[tuple[str, str]]) -> str:
    """Labels and values in two columns."""
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)
