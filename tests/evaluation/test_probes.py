from __future__ import annotations

import numpy as np
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation import probes
from tatok_pipe.evaluation.probes import PROBES, probe_pictures


def test_what_probes_show() -> None:
    for picture in probe_pictures("text", image_size=128, num_images=8, seed=0):
        brightness = picture.pixels.mean(axis=2)
        ground = np.median(brightness)
        ink = np.abs(brightness - ground) > 60
        assert 0.02 < ink.mean() < 0.4 and picture.text
    detail = {
        kind: [
            np.abs(np.diff(each.pixels.astype(float), axis=0)).mean()
            for each in probe_pictures(kind, image_size=64, num_images=5, seed=0)
        ]
        for kind in PROBES
    }
    assert min(detail["texture"]) > 3 and detail["synthetic"][1] == 0  # one that is uniform
    with pytest.raises(UserError, match="'photo': expected one of texture, text, synthetic"):
        probe_pictures("photo", image_size=64, num_images=1, seed=0)
    with pytest.raises(UserError, match="image_size=8: probes are drawn from 16 pixels on"):
        probe_pictures("text", image_size=8, num_images=1, seed=0)


def test_textures_need_the_pictures_of_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        probe_pictures("texture", image_size=64, num_images=1, seed=0)


def test_probes_depend_on_their_place_alone() -> None:
    for kind in PROBES:
        many, few = (probe_pictures(kind, image_size=48, num_images=count, seed=3) for count in (10, 4))
        for one, other in zip(many, few, strict=False):
            assert one.key == other.key and one.kind == kind and np.array_equal(one.pixels, other.pixels)
        assert all(each.pixels.shape == (48, 48, 3) and each.pixels.dtype == np.uint8 for each in many)
        assert len({each.pixels.tobytes() for each in many}) == 10
        other_seed = probe_pictures(kind, image_size=48, num_images=1, seed=4)
        assert not np.array_equal(other_seed[0].pixels, many[0].pixels)
    assert all(
        each.text for each in probe_pictures("text", image_size=16, num_images=4, seed=0)
    )  # tiny ones too
