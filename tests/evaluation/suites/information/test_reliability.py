from __future__ import annotations

import numpy as np
import pytest

from tatok_pipe.evaluation.suites.information.reliability import (
    CELL_NATS,
    NUM_BINS,
    NUM_CELLS,
    grid_sums,
    reliability,
)


def draw_codes(count: int, *, sharpen: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Entropies that a model gives and surprisals that it meets, nats, over 64 codes drawn from the distribution that
    it gives, or, with `sharpen`, from one whose logits are that many times flatter than it believes."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 64)) * random.uniform(0.3, 4, size=(count, 1))

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    told, true = log_softmax(logits * sharpen), log_softmax(logits)
    codes = (np.exp(true).cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    return -(np.exp(told) * told).sum(axis=1), -told[np.arange(count), codes]


@pytest.mark.parametrize("num_bins", [1, 7, NUM_BINS])
def test_curve_of_summed_parts_is_that_of_all_codes(num_bins: int) -> None:
    entropy, surprisal = draw_codes(5000)
    parts = zip(np.split(entropy, [700, 2400]), np.split(surprisal, [700, 2400]), strict=True)
    found = reliability(
        sum((grid_sums(*part) for part in parts), np.zeros((3, NUM_CELLS))), num_bins=num_bins
    )
    assert len(found.count) == num_bins and found.count.sum() == 5000
    # Bins follow each other in entropy, so they are runs of all codes in that order.
    runs = np.split(np.argsort(entropy, kind="stable"), found.count.cumsum().astype(int)[:-1])
    assert found.entropy == pytest.approx([entropy[run].mean() for run in runs])
    # Codes in the same cell are in some order; the bin's edge is between two cells.
    assert found.surprisal == pytest.approx([surprisal[run].mean() for run in runs])
    edges = [(entropy[left].max(), entropy[right].min()) for left, right in zip(runs, runs[1:], strict=False)]
    assert all(low // CELL_NATS < high // CELL_NATS for low, high in edges)
    fullest = grid_sums(entropy, surprisal)[0].max()
    assert np.abs(found.count - 5000 / num_bins).max() <= fullest
    expected = sum(len(run) * abs((surprisal - entropy)[run].mean()) for run in runs) / 5000
    assert found.expected_error == pytest.approx(expected)


def test_a_calibrated_model_has_no_error_and_a_sure_one_has() -> None:
    calibrated = reliability(grid_sums(*draw_codes(40_000)))
    assert calibrated.expected_error < 0.03
    sure = reliability(grid_sums(*draw_codes(40_000, sharpen=2.0)))
    assert sure.expected_error > 0.5
    assert bool((sure.surprisal > sure.entropy).all())  # above the diagonal


def test_few_codes_and_what_lies_outside_the_grid() -> None:
    found = reliability(grid_sums(np.array([0.0, 1e-9, 99.0]), np.array([1.0, 3.0, 50.0])))
    assert found.count.tolist() == [2, 1]
    assert found.entropy == pytest.approx([5e-10, 99]) and found.surprisal.tolist() == [2, 50]
