from __future__ import annotations

from typing import TYPE_CHECKING

from tatok_pipe.tokenizer.scores.base import SQUARED_ERROR, Score, ScoredTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tatok_pipe.tokenizer.encoded import Encoded


class DropCost(Score):
    """The decoded picture's error for want of the patch, as a small head predicts it from the encoder's side."""

    name = "drop_cost"
    unit = SQUARED_ERROR
    help = "what the decoded picture loses, as a small trained head predicts it"

    def measure(
        self,
        model: ScoredTokenizer,
        images: Tensor,
        encoded: Encoded,
        *,
        entropy: Tensor | None = None,
    ) -> Tensor:
        return model.log_drop_cost(encoded).exp()
