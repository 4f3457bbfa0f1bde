"""How much of a training's rows holds tokens, and the rows that fit a small dataset. Estimates, from sums alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tatok_pipe.tokens.loading.packing import rows_per_rank

# What best-fit packing leaves empty at most on lengths as they are, and on a few rows.
_FILL = 0.998
_FEW_ROWS_FILL = 0.95
_MAX_FEW_ROWS = 16


@dataclass(frozen=True)
class BatchShape:
    """The rows of a step, over all workers."""

    row_tokens: int
    rows_per_step: int
    microbatch_rows: int  # of each worker; what is missing to whole ones is empty rows

    @property
    def batch_tokens(self) -> int:
        return self.rows_per_step * self.row_tokens


def estimate_fill(shape: BatchShape, *, num_elements: int, num_ranks: int) -> float:
    """The share of an epoch's slots that holds its `num_elements`."""
    num_rows = max(1, math.ceil(num_elements / _FILL / shape.row_tokens))
    num_steps = math.ceil(num_rows / shape.rows_per_step)
    size = shape.microbatch_rows
    rows_of_rank = math.ceil(rows_per_rank(shape.rows_per_step, num_ranks) / size) * size
    return num_elements / (num_steps * num_ranks * rows_of_rank * shape.row_tokens)


def fit_batch(shape: BatchShape, *, num_elements: int, longest_elements: int, num_ranks: int) -> BatchShape:
    """The fullest steps that are no larger than `shape`, with rows no longer and no shorter than `longest_elements`;
    `shape` itself where nothing is fuller."""
    best = shape
    for num_rows in range(1, _MAX_FEW_ROWS + 1):
        wanted = math.ceil(num_elements / _FEW_ROWS_FILL / num_rows)
        row_tokens = min(shape.row_tokens, max(longest_elements, wanted))
        rows_per_step = min(shape.rows_per_step, max(1, math.ceil(num_elements / _FILL / row_tokens)))
        microbatch_rows = min(shape.microbatch_rows, rows_per_rank(rows_per_step, num_ranks))
        tried = replace(
            shape, row_tokens=row_tokens, rows_per_step=rows_per_step, microbatch_rows=microbatch_rows
        )
        fills = [
            estimate_fill(each, num_elements=num_elements, num_ranks=num_ranks) for each in (best, tried)
        ]
        best = tried if fills[1] > fills[0] else best
    return best
