"""The options of the networks that evaluations measure with, without torch."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option

KINDS = ("auto", "inception", "efficientnet_lite0")


@config_dataclass
class FeaturesConfig:
    kind: str = option(
        "auto",
        choices=KINDS,
        help="network of the Fréchet distance: inception gives FID, and needs torch-fidelity with torchvision; "
        "efficientnet_lite0 gives a distance of its own name; auto: inception where inception_weights are given",
    )
    inception_weights: str | None = option(
        None,
        help="file weights-inception-2015-12-05-6726825d.pth on the disk of every node; null: torch-fidelity "
        "downloads it",
        is_url=True,
    )

    @property
    def network(self) -> str:
        if self.kind != "auto":
            return self.kind
        return "inception" if self.inception_weights else "efficientnet_lite0"

    @property
    def distance_name(self) -> str:
        """How a Fréchet distance of these features is to be called."""
        return "FID" if self.network == "inception" else "FD-efficientnet"

    @property
    def score_name(self) -> str:
        return "IS" if self.network == "inception" else "IS-efficientnet"
