"""Statistics of token shards that merge exactly: any grouping and order of shards gives the same numbers.

Sums of entropies are kept as integers, in units of 2^-20 nats, because floating-point sums depend on order.
They are sums of the stored float32 values, so counting the rows of a finished shard again, with its quarantine
file and the source in its footer, gives its statistics: nothing in them has another origin.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.columns import list_lengths, to_numpy

NUM_ENTROPY_BINS = 64
NUM_INFORMATION_BINS = 64
# An estimate of mutual information may be negative, and its size depends on the tokenizer: even bins of
# asinh(nats) are fine around zero, grow in proportion far from it, and need no range that is known before.
MAX_INFORMATION_ASINH = 12.0  # sinh(12) = 81,377 nats; the outer bins also hold what lies beyond
_UNITS_PER_NAT = 1 << 20
_SCALARS = (
    "num_images",
    "num_quarantined",
    "num_tokens",
    "bytes_in",
    "entropy_total_units",
    "entropy_dropped_units",
    "mutual_information_units",
    "mutual_information_count",
)
_HISTOGRAMS = ("kept_histogram", "entropy_histogram", "mutual_information_histogram")
_CODE_COUNTS = ("global_code_counts", "patch_code_counts")


@dataclass(eq=False)
class ShardStatistics:
    """Counts and sums over token rows and quarantined samples. Make one with `empty`.

    N patches, K globals, V_g and V_p codes. "Images" are rows: with augmentation one source image has
    several.
    """

    num_globals: int
    num_patches: int
    kept_histogram: np.ndarray  # (N + 1,) int64: images by number of kept patches
    entropy_histogram: np.ndarray  # (64,) int64: images by total entropy, even bins over [0, N ln V_p] nats
    mutual_information_histogram: np.ndarray  # (64,) int64: images by estimate, between `information_edges`
    global_code_counts: np.ndarray  # (V_g,) int64
    patch_code_counts: np.ndarray  # (V_p,) int64
    num_images: int = 0
    num_quarantined: int = 0
    num_tokens: int = 0
    bytes_in: int = 0  # of the image shards
    entropy_total_units: int = 0  # 2^-20 nats, as all units
    entropy_dropped_units: int = 0
    mutual_information_units: int = 0
    mutual_information_count: int = 0  # images that have the estimate
    quarantine_reasons: dict[str, int] = field(default_factory=dict)  # error class -> samples

    @classmethod
    def empty(
        cls, *, num_globals: int, num_patches: int, global_vocab: int, patch_vocab: int
    ) -> ShardStatistics:
        return cls(
            num_globals=num_globals,
            num_patches=num_patches,
            kept_histogram=np.zeros(num_patches + 1, np.int64),
            entropy_histogram=np.zeros(NUM_ENTROPY_BINS, np.int64),
            mutual_information_histogram=np.zeros(NUM_INFORMATION_BINS, np.int64),
            global_code_counts=np.zeros(global_vocab, np.int64),
            patch_code_counts=np.zeros(patch_vocab, np.int64),
        )

    def update(self, records: Sequence[TokenRecord]) -> None:
        """Count valid `records`: codes within the vocabularies, at most N kept patches, finite entropies."""
        if not records:
            return
        informations = [
            record.mutual_information for record in records if record.mutual_information is not None
        ]
        self._count(
            kept=np.fromiter((len(record.patch_codes) for record in records), np.int64, len(records)),
            totals=np.fromiter((record.entropy_total for record in records), np.float32, len(records)),
            dropped=float32_toward_zero([record.entropy_dropped for record in records]),
            informations=np.asarray(informations, np.float32),
            global_codes=np.concatenate([record.global_codes for record in records]),
            patch_codes=np.concatenate([record.patch_codes for record in records]),
        )

    def update_from_table(self, table: pa.Table) -> None:
        """`update` with the rows of a table of `token_schema`, without making a record of each."""
        for batch in table.to_batches():
            self._count(
                kept=list_lengths(batch.column("patch_codes")),
                totals=to_numpy(batch.column("entropy_total")),
                dropped=to_numpy(batch.column("entropy_dropped")),
                informations=to_numpy(batch.column("mutual_information").drop_null()),
                global_codes=to_numpy(batch.column("global_codes").flatten()),
                patch_codes=to_numpy(batch.column("patch_codes").flatten()),
            )

    def _count(
        self,
        *,
        kept: np.ndarray,  # (B,) patches
        totals: np.ndarray,  # (B,) float32 nats
        dropped: np.ndarray,  # (B,) float32 nats
        informations: np.ndarray,  # (at most B,) float32 nats
        global_codes: np.ndarray,  # (B K,)
        patch_codes: np.ndarray,  # (sum of kept,)
    ) -> None:
        self.num_images += len(kept)
        self.num_tokens += int(kept.sum()) + self.num_globals * len(kept)
        self.kept_histogram += np.bincount(kept, minlength=self.num_patches + 1)
        bins = np.clip(totals.astype(np.float64) / self.entropy_bin_nats, 0, NUM_ENTROPY_BINS - 1)
        self.entropy_histogram += np.bincount(bins.astype(np.int64), minlength=NUM_ENTROPY_BINS)
        self.entropy_total_units += _to_units(totals)
        self.entropy_dropped_units += _to_units(dropped)
        self.mutual_information_units += _to_units(informations)
        self.mutual_information_count += len(informations)
        places = np.searchsorted(information_edges()[1:-1], informations, side="right")
        self.mutual_information_histogram += np.bincount(places, minlength=NUM_INFORMATION_BINS)
        self.global_code_counts += _bincount(global_codes, len(self.global_code_counts))
        self.patch_code_counts += _bincount(patch_codes, len(self.patch_code_counts))

    def add_quarantined(self, rows: Sequence[Quarantined]) -> None:
        self.num_quarantined += len(rows)
        for row in rows:
            self.quarantine_reasons[row.error] = self.quarantine_reasons.get(row.error, 0) + 1

    def merge(self, other: ShardStatistics) -> None:
        """Add `other`. Raises ValueError where it counts images of another shape or other vocabularies."""
        if self.shape != other.shape:
            raise ValueError(f"statistics of (K, N, V_g, V_p) = {other.shape} do not merge into {self.shape}")
        for name in _SCALARS + _HISTOGRAMS + _CODE_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for error, count in other.quarantine_reasons.items():
            self.quarantine_reasons[error] = self.quarantine_reasons.get(error, 0) + count

    def differences(self, other: ShardStatistics) -> list[str]:
        """One line "name: mine, not theirs" for each figure that differs; arrays by their first difference."""
        if self.shape != other.shape:
            return [f"(K, N, V_g, V_p): {self.shape}, not {other.shape}"]
        lines = [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in (*_SCALARS, "quarantine_reasons")
            if getattr(self, name) != getattr(other, name)
        ]
        for name in _HISTOGRAMS + _CODE_COUNTS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.array_equal(mine, theirs):
                place = int(np.flatnonzero(mine != theirs)[0])
                lines.append(f"{name}[{place}]: {mine[place]}, not {theirs[place]}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """JSON types, the same for equal statistics; `from_json` gives exactly these statistics back."""
        return {
            "num_globals": self.num_globals,
            "num_patches": self.num_patches,
            **{name: getattr(self, name) for name in _SCALARS},
            "quarantine_reasons": dict(sorted(self.quarantine_reasons.items())),
            **{name: getattr(self, name).tolist() for name in _HISTOGRAMS},
            **{name: _pack(getattr(self, name)) for name in _CODE_COUNTS},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardStatistics:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or zlib.error for anything else."""
        fields: dict[str, Any] = {
            **{name: value[name] for name in ("num_globals", "num_patches", *_SCALARS)},
            "quarantine_reasons": dict(value["quarantine_reasons"]),
            **{name: np.asarray(value[name], np.int64) for name in _HISTOGRAMS},
            **{name: _unpack(value[name]) for name in _CODE_COUNTS},
        }
        found = cls(**fields)
        for name, expected in (
            ("kept_histogram", found.num_patches + 1),
            ("entropy_histogram", NUM_ENTROPY_BINS),
            ("mutual_information_histogram", NUM_INFORMATION_BINS),
        ):
            if getattr(found, name).shape != (expected,):
                raise ValueError(f"{name}: {getattr(found, name).shape} values, expected {expected}")
        return found

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, N, V_g, V_p)."""
        return self.num_globals, self.num_patches, len(self.global_code_counts), len(self.patch_code_counts)

    @property
    def entropy_bin_nats(self) -> float:
        """Width of a bin of `entropy_histogram`; the last one also holds what lies above N ln V_p."""
        vocab = max(len(self.patch_code_counts), 2)  # ln 1 = 0 would leave no range
        return self.num_patches * math.log(vocab) / NUM_ENTROPY_BINS

    @property
    def mean_tokens(self) -> float:
        """Tokens per image, globals included; NaN without images, as all means."""
        return _divide(self.num_tokens, self.num_images)

    @property
    def std_tokens(self) -> float:
        """Standard deviation of tokens per image (of the population)."""
        kept = np.arange(self.num_patches + 1)
        mean = _divide(float(kept @ self.kept_histogram), self.num_images)
        return math.sqrt(_divide(float((kept - mean) ** 2 @ self.kept_histogram), self.num_images))

    @property
    def mean_entropy_nats(self) -> float:
        """Code entropy per image before filtering."""
        return _divide(self.entropy_total_units / _UNITS_PER_NAT, self.num_images)

    @property
    def mean_entropy_dropped_nats(self) -> float:
        return _divide(self.entropy_dropped_units / _UNITS_PER_NAT, self.num_images)

    @property
    def mean_mutual_information_nats(self) -> float:
        """Mean of the estimate of I(G; P) over the images that have it."""
        return _divide(self.mutual_information_units / _UNITS_PER_NAT, self.mutual_information_count)

    def token_percentile(self, percent: float) -> int:
        """The smallest token count that at least `percent` % of the images do not exceed (nearest rank)."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percent={percent}: expected 0 to 100")
        if not self.num_images:
            raise ValueError("no images: there is no percentile of their tokens")
        rank = max(1, math.ceil(percent / 100 * self.num_images))
        return self.num_globals + int(np.searchsorted(np.cumsum(self.kept_histogram), rank))

    def to_summary(self) -> dict[str, Any]:
        """The derived figures, for people; None where there is nothing to average."""
        has_images = self.num_images > 0
        return {
            "mean_tokens": _or_none(self.mean_tokens),
            "std_tokens": _or_none(self.std_tokens),
            "percentile_tokens": {
                str(p): self.token_percentile(p) if has_images else None for p in (5, 25, 50, 75, 95)
            },
            "mean_entropy_nats": _or_none(self.mean_entropy_nats),
            "mean_entropy_dropped_nats": _or_none(self.mean_entropy_dropped_nats),
            "mean_mutual_information_nats": _or_none(self.mean_mutual_information_nats),
            "global_codes_used": used_share(self.global_code_counts),
            "patch_codes_used": used_share(self.patch_code_counts),
            "global_code_perplexity": perplexity(self.global_code_counts),
            "patch_code_perplexity": perplexity(self.patch_code_counts),
        }


@cache
def information_edges() -> np.ndarray:
    """The edges of `mutual_information_histogram`, (65,) float32 nats: sinh of even steps from -12 to 12.

    float32, as the column is: then a last bit in which two machines' sinh differ moves no image to another bin.
    A bin holds its lower edge.
    """
    steps = np.arange(NUM_INFORMATION_BINS + 1) - NUM_INFORMATION_BINS // 2
    edges = np.sinh(steps * (2 * MAX_INFORMATION_ASINH / NUM_INFORMATION_BINS)).astype(np.float32)
    edges.flags.writeable = False
    return edges


def used_share(counts: np.ndarray) -> float:
    """The share of a codebook, counts (V,), that occurs at all."""
    return float(np.count_nonzero(counts)) / len(counts)


def perplexity(counts: np.ndarray) -> float:
    """exp(entropy) of the frequencies counts (V,): the size of a uniform codebook as rich; 0 if empty."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def float32_toward_zero(values: Sequence[float]) -> np.ndarray:
    """Non-negative `values` as float32, never larger than they were.

    Rounding to nearest may lift a dropped entropy just below the budget above it, and then a reader who
    checks `entropy_dropped <= budget` on the stored column finds the promise broken.
    """
    exact = np.asarray(values, np.float64)
    rounded = exact.astype(np.float32)
    return np.where(rounded.astype(np.float64) > exact, np.nextafter(rounded, np.float32(0)), rounded)


def _to_units(nats: np.ndarray) -> int:
    return int(np.rint(nats.astype(np.float64) * _UNITS_PER_NAT).astype(np.int64).sum())


def _bincount(codes: np.ndarray, vocab: int) -> np.ndarray:
    return np.bincount(codes.astype(np.int64), minlength=vocab)


def _divide(total: float, count: int) -> float:
    return total / count if count else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _pack(counts: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(counts.astype("<i8").tobytes())).decode("ascii")


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)
