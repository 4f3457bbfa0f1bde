from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.features import FeatureNetwork
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork(FeaturesConfig(), "cpu")


def test_a_photograph_of_coffee_is_seen_as_such(network: FeatureNetwork) -> None:
    """The weights are in their places, and pixels arrive as the network was trained on them."""
    crops = [crop for crop in held_out_crops(crops_per_source=8) if crop.key.startswith("coffee")]
    pixels = np.stack([decode_image(crop.image, PreprocessConfig(image_size=224))[0] for crop in crops])
    found = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert found.vectors.shape == (8, 1280) and found.logits.shape == (8, 1000)
    best = found.logits.argmax(axis=1).tolist()
    assert sum(label in (504, 967, 968, 925, 960) for label in best) >= 3, (
        best
    )  # ImageNet: mugs, cups, espresso


def test_features_do_not_depend_on_the_batch(network: FeatureNetwork) -> None:
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    together, alone = network(images), network(images[1:2])
    assert np.allclose(together.vectors[1], alone.vectors[0], atol=1e-4)
    assert not np.allclose(together.vectors[0], together.vectors[1], atol=1e-2)


def test_only_inception_is_called_fid() -> None:
    assert FeaturesConfig().distance_name == "FD-efficientnet"
    assert FeaturesConfig().score_name == "IS-efficientnet"
    assert FeaturesConfig(inception_weights="x.pth").network == "inception"
    assert FeaturesConfig("efficientnet_lite0", "x.pth").network == "efficientnet_lite0"
    assert (FeaturesConfig("inception").distance_name, FeaturesConfig("inception").score_name) == (
        "FID",
        "IS",
    )


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_its_package_is_told() -> None:
    with pytest.raises(
        UserError, match=r"features\.kind=inception: Inception-v3 cannot be loaded .* pip install"
    ):
        FeatureNetwork(FeaturesConfig("inception"), "cpu")
