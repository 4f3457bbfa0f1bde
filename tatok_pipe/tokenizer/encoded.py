"""What encoding gives. Letters: B images, K globals, N patches, C and D dimensions of codewords, F features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """`vectors` (..., C) pass gradients straight through; `codes` (...) int64; `regularizer` () is what the quantizer
    asks of the encoder, under the name that its class gives it."""

    vectors: Tensor
    codes: Tensor
    regularizer: Tensor


@dataclass(frozen=True)
class Encoded:
    """What the encoder and the quantizers make of a batch of images."""

    globals: Quantized  # vectors (B, K, D), codes (B, K)
    patches: Quantized  # vectors (B, N, C), codes (B, N)
    gain: Tensor  # (B, N) float32, what the codeword alone takes off the mean squared error of its patch
    features: Tensor  # (B, N, F) float32, all that the drop-cost head reads of a patch

    def rows(self, rows: Tensor) -> Encoded:
        """Some of the images, by index or mask (B,). A loss of the whole batch is no part of it."""

        def some(quantized: Quantized) -> Quantized:
            return Quantized(
                quantized.vectors[rows], quantized.codes[rows], quantized.regularizer.new_zeros(())
            )

        return Encoded(some(self.globals), some(self.patches), self.gain[rows], self.features[rows])
