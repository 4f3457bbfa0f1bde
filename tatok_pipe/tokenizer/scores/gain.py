from __future__ import annotations

from typing import TYPE_CHECKING

from tatok_pipe.tokenizer.scores.base import SQUARED_ERROR, Score, ScoredTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tatok_pipe.tokenizer.encoded import Encoded


class Gain(Score):
    """What the codeword of a patch alone takes off its error; the quantizer knows it, so it is free."""

    name = "gain"
    unit = SQUARED_ERROR
    help = "what its codeword alone takes off its error, free"

    def measure(
        self,
        model: ScoredTokenizer,
        images: Tensor,
        encoded: Encoded,
        *,
        entropy: Tensor | None = None,
    ) -> Tensor:
        return encoded.gain
