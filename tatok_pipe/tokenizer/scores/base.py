"""What a score is. Letters: B images, N patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tatok_pipe.tokenizer.encoded import Encoded

SQUARED_ERROR = "mean squared error of a patch, pixels in [0, 1]"
NATS = "nats"


class ScoredTokenizer(Protocol):
    """What a score may ask of the tokenizer (`model.TaTok`, which explains each)."""

    def patchify(self, images: Tensor) -> Tensor: ...

    def patch_error(self, images: Tensor, encoded: Encoded, keep: Tensor) -> Tensor: ...

    def patch_entropy(self, global_codes: Tensor, patch_codes: Tensor) -> Tensor: ...

    def log_drop_cost(self, encoded: Encoded) -> Tensor: ...


class Score(ABC):
    """A measure of what losing a patch costs, by which patches are filtered."""

    name: str  # what options call it
    unit: str  # of its costs
    help: str  # what it is, and what it takes to compute

    @abstractmethod
    def measure(
        self,
        model: ScoredTokenizer,
        images: Tensor,
        encoded: Encoded,
        *,
        entropy: Tensor | None = None,
    ) -> Tensor:
        """Costs (B, N) float32 of images (B, 3, H, W) in [0, 1], of which `encoded` is what the model encoded.

        `entropy` (B, N) are the conditional entropies of the patch codes, in nats, where they are known already.
        """
