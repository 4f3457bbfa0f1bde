from __future__ import annotations

import math

import pytest

from tatok_pipe.training.schedule import ScheduleConfig, learning_rate


def rates(num_steps: int, **changes: float | int | str) -> list[float]:
    config = ScheduleConfig(**{"peak": 1.0, "warmup_steps": 10, "floor_share": 0.1} | changes)  # type: ignore[arg-type]
    return [learning_rate(config, step=step, num_steps=num_steps) for step in range(num_steps)]


def test_a_cosine_rises_linearly_and_falls_to_its_floor() -> None:
    values = rates(110)
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[60] == pytest.approx(0.1 + 0.9 / 2)  # half-way down
    assert values[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert all(a >= b for a, b in zip(values[10:], values[11:], strict=False))


def test_wsd_stays_on_its_plateau_and_then_falls_in_a_line() -> None:
    values = rates(100, shape="wsd", decay_share=0.2)
    assert values[10:80] == [1.0] * 70
    assert values[90] == pytest.approx(0.1 + 0.9 * 0.5)
    # So a training may be prolonged: up to where the shorter one began to fall, nothing differs.
    assert rates(200, shape="wsd", decay_share=0.1)[:80] == values[:80]


def test_constant_and_a_short_training() -> None:
    assert rates(30, shape="constant")[10:] == [1.0] * 20
    assert rates(4)[:2] == pytest.approx([0.5, 1.0])  # a warm-up longer than the training is cut


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="peak=0"):
        ScheduleConfig(peak=0)
    with pytest.raises(ValueError, match=r"floor_share=1\.5"):
        ScheduleConfig(floor_share=1.5)
    with pytest.raises(ValueError, match="shape=step"):
        ScheduleConfig(shape="step")
