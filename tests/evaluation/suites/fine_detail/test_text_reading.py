from __future__ import annotations

import numpy as np
import pytest
import torch

from tatok_pipe.evaluation.pictures import to_images
from tatok_pipe.evaluation.probes import probe_pictures
from tatok_pipe.evaluation.suites.fine_detail.text_reading import can_read, error_rate


@pytest.mark.skipif(not can_read(), reason="the program tesseract is not installed")
def test_text_is_read_and_what_is_lost_is_counted() -> None:
    pictures = probe_pictures("text", image_size=128, num_images=6, seed=0)
    assert np.mean([error_rate(each.pixels, each.text) for each in pictures]) < 0.05
    blank = np.full((128, 128, 3), 200, np.uint8)
    assert error_rate(blank, "some words") == 1.0
    blurred = torch.nn.functional.avg_pool2d(to_images(pictures), 9, stride=1, padding=4)
    pixels = (blurred[0].permute(1, 2, 0) * 255).byte().numpy()
    assert error_rate(pixels, pictures[0].text) > 0.1
