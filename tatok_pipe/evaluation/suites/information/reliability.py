"""How well predicted entropies fit the surprisals that are met, from sums over a fixed grid of entropy.

A calibrated model is as surprised, on average, by the codes to which it gave an entropy of h nats as it said: by h.
Sums of parts add up, so that nothing of the size of a corpus is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CELL_NATS = 0.05
NUM_CELLS = (
    256  # to 12.8 nats, the entropy of 360,000 equally likely codes; the last cell takes what is above
)
NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Bins of about equal numbers of codes, by predicted entropy."""

    count: np.ndarray  # (bins,) codes
    entropy: np.ndarray  # (bins,) mean, nats
    surprisal: np.ndarray  # (bins,) mean, nats

    @property
    def expected_error(self) -> float:
        """Expected calibration error, nats a code: mean |surprisal - entropy| of the bins, weighted by their codes
        (as Naeini, Cooper and Hauskrecht 2015 weight confidence against accuracy)."""
        return float(np.average(np.abs(self.surprisal - self.entropy), weights=self.count))


def grid_sums(entropy: np.ndarray, surprisal: np.ndarray) -> np.ndarray:
    """Codes, their entropies and their surprisals summed in each cell of the grid: nats, any shape, twice, to
    (3, NUM_CELLS) float64."""
    entropy, surprisal = (np.asarray(x, np.float64).ravel() for x in (entropy, surprisal))
    cell = np.clip(entropy / CELL_NATS, 0, NUM_CELLS - 1).astype(np.int64)
    return np.stack(
        [
            np.bincount(cell, weights=weights, minlength=NUM_CELLS)
            for weights in (np.ones_like(entropy), entropy, surprisal)
        ]
    )


def reliability(sums: np.ndarray, *, num_bins: int = NUM_BINS) -> Reliability:
    """Cells of `grid_sums` (3, NUM_CELLS) merged into at most `num_bins` quantile bins: a cell goes where the middle of
    its codes falls. Bins without codes are left out."""
    count = sums[0]
    middle = (count.cumsum() - count / 2) / count.sum()  # share of the codes
    place = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
    merged = np.stack([np.bincount(place, weights=each, minlength=num_bins) for each in sums])
    count, entropy, surprisal = merged[:, merged[0] > 0]
    return Reliability(count, entropy / count, surprisal / count)
