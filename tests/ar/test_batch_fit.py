"""How full the rows of small datasets are, and rows that fit them."""

from __future__ import annotations

import pytest

from tatok_pipe.ar.batch_fit import BatchShape, estimate_fill, fit_batch

DEFAULTS = BatchShape(row_tokens=4096, rows_per_step=64, microbatch_rows=8)


def test_fill_by_hand() -> None:
    # Two rows' worth of tokens in a step of 64 rows, on one worker and on three (22 rows each, so 24).
    assert estimate_fill(DEFAULTS, num_elements=8100, num_ranks=1) == pytest.approx(8100 / (64 * 4096))
    assert estimate_fill(DEFAULTS, num_elements=8100, num_ranks=3) == pytest.approx(8100 / (72 * 4096))
    # 64 rows of 4,096 and a little: two steps.
    assert estimate_fill(DEFAULTS, num_elements=64 * 4096, num_ranks=1) == pytest.approx(0.5)
    assert estimate_fill(DEFAULTS, num_elements=10**9, num_ranks=1) > 0.99


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("num_elements", [60, 400, 8_100, 30_000, 200_000])
def test_what_fits_is_no_larger_and_mostly_full(num_elements: int, num_ranks: int) -> None:
    fit = fit_batch(DEFAULTS, num_elements=num_elements, longest_elements=273, num_ranks=num_ranks)
    assert 273 <= fit.row_tokens <= DEFAULTS.row_tokens
    assert fit.batch_tokens <= DEFAULTS.batch_tokens and fit.microbatch_rows <= DEFAULTS.microbatch_rows
    fill = estimate_fill(fit, num_elements=num_elements, num_ranks=num_ranks)
    assert fill >= estimate_fill(DEFAULTS, num_elements=num_elements, num_ranks=num_ranks)
    assert fill > (0.6 if num_elements > 400 else 60 / 273 / num_ranks - 0.01)


def test_what_is_full_stays() -> None:
    assert fit_batch(DEFAULTS, num_elements=10**8, longest_elements=273, num_ranks=1) == DEFAULTS
