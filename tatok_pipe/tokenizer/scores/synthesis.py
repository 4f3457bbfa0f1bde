from __future__ import annotations

from typing import TYPE_CHECKING

from tatok_pipe.tokenizer.scores.base import SQUARED_ERROR, Score, ScoredTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tatok_pipe.tokenizer.encoded import Encoded

# Shares of the patches that are kept after each round but the last, which takes the rest.
SYNTHESIS_SHARES = (0.1, 0.25, 0.5)


class Synthesis(Score):
    """Analysis by synthesis: what each patch adds to the decoded picture.

    The picture is decoded from the globals alone, then from the globals and the patches whose error falls most by
    being kept, and so on, in rounds up to the shares of `SYNTHESIS_SHARES`. What the errors of the chosen patches fell
    by, in descending order, are the costs of the patches in the order in which they were chosen, so that every rule of
    filtering keeps that order.
    """

    name = "synthesis"
    unit = SQUARED_ERROR
    help = (
        "what the decoded picture loses, measured by decoding in rounds, at the price of five decoder passes"
    )

    def measure(
        self,
        model: ScoredTokenizer,
        images: Tensor,
        encoded: Encoded,
        *,
        entropy: Tensor | None = None,
    ) -> Tensor:
        codes = encoded.patches.codes
        num_patches = codes.shape[1]
        keep = codes.new_zeros(codes.shape).bool()
        best = model.patch_error(images, encoded, ~keep)
        order, gains = codes.new_empty(codes.shape), best.new_empty(best.shape)
        num_kept = 0
        for share in (*SYNTHESIS_SHARES, 1.0):
            gain = model.patch_error(images, encoded, keep) - best  # (B, N)
            ranked = gain.masked_fill(keep, -float("inf")).argsort(dim=1, descending=True, stable=True)
            last = max(1, round(share * num_patches))
            chosen = ranked[:, : last - num_kept]
            order[:, num_kept:last] = chosen
            gains[:, num_kept:last] = gain.gather(1, chosen)
            keep = keep.scatter(1, chosen, True)
            num_kept = last
        values = gains.sort(dim=1, descending=True).values
        return best.new_zeros(best.shape).scatter(1, order, values)
