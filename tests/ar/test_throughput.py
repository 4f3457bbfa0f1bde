"""Figures of a training's speed, by hand and against a clock that the test turns."""

from __future__ import annotations

import pytest
import torch

from tatok_pipe.ar import throughput
from tatok_pipe.ar.throughput import Ceiling, Throughput


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_figures_are_those_since_the_last_line(clock: Clock) -> None:
    speed = Throughput()
    for _ in range(4):
        clock.now_s += 0.5
        speed.waited(0.1)
        speed.did(elements=990, slots=1000, sequences=10)
    figures = speed.take(flops_per_element=1e6, peak_flops_per_s=1e10)
    assert figures == pytest.approx(
        {
            "tokens_per_s": 1980.0, "images_per_s": 20.0, "step_s": 0.5, "fill": 0.99, "mfu": 0.198,
            "data_wait_share": 0.2,
        }
    )  # fmt: skip
    # And nothing of it in the next.
    clock.now_s += 1
    speed.did(elements=500, slots=1000, sequences=5)
    figures = speed.take(flops_per_element=1e6, peak_flops_per_s=1e10)
    assert figures == pytest.approx(
        {
            "tokens_per_s": 500.0, "images_per_s": 5.0, "step_s": 1.0, "fill": 0.5, "mfu": 0.05,
            "data_wait_share": 0.0,
        }
    )  # fmt: skip


def test_a_line_without_a_step_divides_by_nothing(clock: Clock) -> None:
    figures = Throughput().take(flops_per_element=1e6, peak_flops_per_s=1e10)
    assert figures.pop("step_s") < 1e-6
    assert set(figures.values()) == {0.0}


def test_a_cpu_is_measured_and_its_best_counts() -> None:
    ceiling = Ceiling(torch.device("cpu"), precision="fp32")
    first = ceiling.flops_per_s()
    assert 1e8 < first < 1e14
    assert ceiling.flops_per_s() >= first


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Some GPU", "bf16", None),
    ],
)
def test_a_known_gpu_has_its_data_sheet(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    ceiling = Ceiling(torch.device("cuda"), precision=precision)
    assert ceiling._data_sheet == expected
    if expected is not None:
        assert ceiling.flops_per_s() == expected
