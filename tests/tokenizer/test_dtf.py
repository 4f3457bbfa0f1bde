"""The five rules against a slow oracle, worked examples, the budget's bound, calibration and resolution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.tokenizer.dtf import PERCENTILES, Filter, calibrate, interpolate, keep_mask, resolve
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES, RULES

# Few distinct values, so that ties are common.
TIED = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0])
COSTS = st.one_of(TIED, st.floats(0, 20, width=32))


def oracle(cost: list[float], filter: Filter) -> list[bool]:
    """One image at a time, in plain Python, with lists and loops."""
    if filter.rule == "none":
        return [True] * len(cost)
    by_importance = sorted(range(len(cost)), key=lambda i: (-cost[i], i))
    kept: set[int] = set()
    if filter.rule == "threshold":
        kept = {i for i in range(len(cost)) if cost[i] > filter.value}
    elif filter.rule == "budget":
        kept = set(by_importance)
        spent = 0.0
        for i in reversed(by_importance):
            spent += cost[i]
            if spent > filter.value:
                break
            kept.remove(i)
    elif filter.rule == "coverage":
        # The total is summed in the order of importance, as the running sum is: floats do not commute.
        total = 0.0
        for i in by_importance:
            total += cost[i]
        running = 0.0
        for i in by_importance:
            running += cost[i]
            if not running - cost[i] < filter.value * total:
                break
            kept.add(i)
    elif filter.rule == "proportional":
        # Summed in the order of importance, as above.
        total = 0.0
        for i in by_importance:
            total += cost[i]
        kept = set(by_importance[: round(filter.value * total)])
    elif filter.rule == "top_k":
        kept = set(by_importance[: int(filter.value)])
    kept |= set(by_importance[: filter.min_patches])
    return [i in kept for i in range(len(cost))]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], Filter]:
    num_patches = draw(st.integers(1, 24))
    rows = draw(st.lists(st.lists(COSTS, min_size=num_patches, max_size=num_patches), min_size=1, max_size=4))
    rule = draw(st.sampled_from(list(RULES)))
    value = {
        "threshold": st.one_of(TIED, st.floats(-1, 21)),
        "budget": st.one_of(TIED, st.floats(0, 100)),
        "coverage": st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1)),
        "proportional": st.floats(0, 30),
        "top_k": st.integers(0, 30).map(float),
        "none": st.just(0.0),
    }[rule]
    return rows, Filter(rule, draw(value), min_patches=draw(st.integers(0, 3)))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.one_of(TIED, st.just(-0.0), st.floats(width=16, allow_nan=False, allow_infinity=False)),
                      min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(0, 5),
)  # fmt: skip
def test_costs_of_16_bits_are_in_the_same_order(rows: list[list[float]], num_kept: int) -> None:
    """Negative ones, which scores may have, and both zeros, which are equal, among them."""
    filter = Filter("top_k", num_kept, min_patches=0)
    expected = [oracle(row, filter) for row in rows]
    assert keep_mask(torch.tensor(rows, dtype=torch.float16), filter).tolist() == expected


@settings(max_examples=600, deadline=None)
@given(batches())
def test_every_rule_agrees_with_the_oracle(case: tuple[list[list[float]], Filter]) -> None:
    rows, filter = case
    mask = keep_mask(torch.tensor(rows, dtype=torch.float64), filter)
    assert mask.tolist() == [oracle(row, filter) for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.lists(COSTS, min_size=1, max_size=64), st.floats(0, 200))
def test_budget_never_drops_more_than_its_nats(cost: list[float], budget: float) -> None:
    cost_tensor = torch.tensor([cost], dtype=torch.float32)
    mask = keep_mask(cost_tensor, Filter("budget", budget, min_patches=0))
    assert math.fsum(cost_tensor[0][~mask[0]].tolist()) <= budget * (1 + 1e-12)


WORKED = torch.tensor([[0.5, 2.0, 0.5, 1.0]])


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("threshold", 0.5, [False, True, False, True]),  # strictly above
        ("threshold", 9.0, [False, True, False, False]),  # the floor of one patch: the dearest
        ("budget", 0.5, [True, True, False, True]),  # of equal costs the later goes first
        ("budget", 1.99, [False, True, False, True]),
        ("budget", 2.0, [False, True, False, False]),
        ("coverage", 0.5, [False, True, False, False]),  # 2 of 4 nats is half already
        ("coverage", 0.51, [False, True, False, True]),
        ("coverage", 0.8, [True, True, False, True]),
        ("proportional", 0.5, [False, True, False, True]),  # half a patch a unit of the total, 4
        ("proportional", 0.8, [True, True, False, True]),  # 3.2
        ("proportional", 100.0, [True, True, True, True]),
        ("top_k", 3.0, [True, True, False, True]),
        ("none", 0.0, [True, True, True, True]),
    ],
)
def test_worked_examples(rule: str, value: float, expected: list[bool]) -> None:
    assert keep_mask(WORKED, Filter(rule, value)).tolist() == [expected]


def test_a_flat_image_keeps_the_floor_only() -> None:
    flat = torch.zeros(1, 16)
    for rule, value in (("threshold", 0.0), ("budget", 0.0), ("coverage", 1.0), ("proportional", 9.0)):
        assert keep_mask(flat, Filter(rule, value, min_patches=2)).sum() == 2


@pytest.mark.parametrize("rule", CALIBRATED_RULES)
@pytest.mark.parametrize("target", [3.0, 16.0, 40.0, 60.0])
def test_calibration_meets_its_target(rule: str, target: float) -> None:
    cost = torch.rand(200, 64, generator=torch.Generator().manual_seed(0)) * 5
    value = calibrate(cost, rule=rule, target_patches=target, min_patches=1)
    kept = keep_mask(cost, Filter(rule, value)).sum(1).double().mean().item()
    assert kept == pytest.approx(target, abs=0.51)


def test_interpolation_is_linear_between_rungs_and_refuses_the_outside() -> None:
    ladder = [[10.0, 4.0], [20.0, 2.0], [40.0, 1.0]]
    assert interpolate(ladder, 10) == 4.0
    assert interpolate(ladder, 15) == 3.0
    assert interpolate(ladder, 30) == 1.5
    assert interpolate(ladder, 40) == 1.0
    for outside in (9.9, 41):
        with pytest.raises(ValueError, match=r"10\.0 to 40\.0"):
            interpolate(ladder, outside)


def test_resolve_takes_the_value_or_the_ladder() -> None:
    ladder = [[10.0, 4.0], [20.0, 2.0], [64.0, 0.0]]
    percents = [[10.0, 0.5], [90.0, 4.5]]
    ladders = {
        "gain": {"threshold": ladder, PERCENTILES: percents},
        "entropy": {"budget": [[10.0, 9.0], [64.0, 0.0]]},
    }

    def resolved(**options: object) -> Filter:
        return resolve(DTFConfig(**options), ladders=ladders, num_globals=4, num_patches=64)  # type: ignore[arg-type]

    assert resolved(value=1.25).value == 1.25
    assert resolved(target_tokens=14).value == 4.0
    assert resolved().value == pytest.approx(interpolate(ladder, 32))
    assert resolved().score == "gain"
    assert resolved(percentile=50).value == pytest.approx(2.5)
    paper = resolved(rule="budget", score="entropy", target_tokens=14)
    assert (paper.value, paper.score) == (9.0, "entropy")
    assert resolved(rule="top_k", target_tokens=14) == Filter("top_k", 10.0, score="gain")
    assert resolved(rule="none").rule == "none"
    assert resolved(rule="top_k", value=64).value == 64
    with pytest.raises(ValueError, match="value=65: top_k expects 0 to 64, the patches of an image"):
        resolved(rule="top_k", value=65)
    with pytest.raises(ValueError, match="no calibration"):
        resolved(rule="budget")
    with pytest.raises(
        ValueError, match=r"target_tokens=5: .*calibrated for 10\.0 to 64\.0 \(and 4 globals\)"
    ):
        resolved(target_tokens=5)
    with pytest.raises(ValueError, match=r"percentile=5\.0: .*calibrated for 10\.0 to 90\.0"):
        resolved(percentile=5)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "best"},
        {"score": "beauty"},
        {"value": 1.0, "target_tokens": 5},
        {"percentile": 50, "target_tokens": 5},
        {"percentile": 50, "rule": "budget"},
        {"rule": "coverage", "value": 1.5},
        {"rule": "budget", "value": -1.0},
        {"rule": "proportional", "value": -1.0},
        {"rule": "top_k", "value": 2.5},
        {"value": float("nan")},
        {"min_patches": -1},
        {"rule": "none", "value": 0.5},
        {"rule": "none", "target_tokens": 5},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DTFConfig(**options)  # type: ignore[arg-type]
