from __future__ import annotations

from typing import TYPE_CHECKING

from tatok_pipe.tokenizer.scores.base import NATS, Score, ScoredTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tatok_pipe.tokenizer.encoded import Encoded


class Entropy(Score):
    """The conditional entropy of the patch code given all global codes and the patch codes before it, TaTok's own
    score (arXiv 2605.16384)."""

    name = "entropy"
    unit = NATS
    help = "the conditional entropy of its code, as in the paper, at the price of a pass of the entropy model"

    def measure(
        self,
        model: ScoredTokenizer,
        images: Tensor,
        encoded: Encoded,
        *,
        entropy: Tensor | None = None,
    ) -> Tensor:
        if entropy is not None:
            return entropy
        return model.patch_entropy(encoded.globals.codes, encoded.patches.codes)
