"""However many threads, only so many pixels at once; and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tatok_pipe.images import decode
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.decode_budget import PixelBudget
from tatok_pipe.images.options import PreprocessConfig

from ..pictures import encode


def test_pixels_in_work_stay_within_the_limit() -> None:
    budget = PixelBudget(100)
    lock, now, most = threading.Lock(), 0, 0

    def work(num_pixels: int) -> None:
        nonlocal now, most
        with budget.hold(num_pixels):
            with lock:
                now += num_pixels
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= num_pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [7, 30, 60, 45, 99] * 20))
    assert 60 <= most <= 100 and now == 0


def test_an_image_larger_than_all_goes_alone() -> None:
    budget = PixelBudget(10)
    order = []
    with ThreadPoolExecutor(2) as pool:
        with budget.hold(50):
            other = pool.submit(
                lambda: [order.append("other") for _ in [0] if budget.hold(1).__enter__() is None]
            )
            time.sleep(0.05)
            order.append("large")
        other.result(timeout=5)
    assert order == ["large", "other"]


def test_a_failed_decode_gives_its_pixels_back() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.hold(10):
            raise ZeroDivisionError
    with budget.hold(10):
        pass


def test_decoding_takes_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    class Recorder(PixelBudget):
        def hold(self, num_pixels: int):  # type: ignore[no-untyped-def]
            held.append(num_pixels)
            return super().hold(num_pixels)

    monkeypatch.setattr(decode, "_BUDGET", Recorder(10**9))
    config = PreprocessConfig(image_size=32)
    decode_image(encode(Image.new("RGB", (300, 200))), config)
    decode_image(encode(Image.new("RGB", (1600, 1200)), "JPEG"), config)  # decoded at an eighth
    decode_image(
        encode(Image.new("RGB", (1600, 1200)), "JPEG", progressive=True), config
    )  # coefficients of all
    assert held == [300 * 200, 200 * 150, 1600 * 1200]
