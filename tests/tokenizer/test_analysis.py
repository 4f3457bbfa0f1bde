"""Scores and controls: what they measure, against code that measures it another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tatok_pipe.tokenizer.analysis import CONTROLS, analyse, decode, neighbour_error, psnr
from tatok_pipe.tokenizer.calibration import PERCENTS, calibrate_ladders, ladders_of
from tatok_pipe.tokenizer.dtf import PERCENTILES, Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.scores.synthesis import SYNTHESIS_SHARES
from tatok_pipe.tokenizer.scores.table import SCORES


def errors(model: TaTok, images: Tensor, keep: Tensor) -> Tensor:
    """Mean squared error of every patch, one image and one patch at a time."""
    tokens = model.tokenize(images, Filter("none", 0))
    decoded = model.decode(tokens.global_codes, tokens.patch_codes, keep)
    found = torch.zeros(keep.shape)
    for image in range(len(images)):
        for patch in range(keep.shape[1]):
            row, column = divmod(patch, model.config.grid_side)
            box = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            found[image, patch] = (decoded[image][box] - images[image][box]).square().mean()
    return found


def test_synthesis_chooses_in_rounds_what_helps_most(model: TaTok, images: Tensor) -> None:
    """Against a plain loop over rounds, images and patches."""
    model.decoder.dropped.data.normal_(generator=torch.Generator().manual_seed(2))  # so that masks matter
    costs = analyse(model, images, controls=False).costs["synthesis"]
    best = errors(model, images, torch.ones(4, 16, dtype=torch.bool))
    for image in range(4):
        kept: list[int] = []
        gains: list[float] = []
        for share in (*SYNTHESIS_SHARES, 1.0):
            keep = torch.zeros(4, 16, dtype=torch.bool)
            keep[image, kept] = True
            gain = (errors(model, images, keep) - best)[image]
            left = sorted(set(range(16)) - set(kept), key=lambda patch: -float(gain[patch]))
            chosen = left[: max(1, round(share * 16)) - len(kept)]
            gains += [float(gain[patch]) for patch in chosen]
            kept += chosen
        assert costs[image].argsort(descending=True).tolist() == kept
        assert costs[image, kept].tolist() == pytest.approx(sorted(gains, reverse=True), abs=1e-6)


def test_the_controls_are_what_they_are_called(model: TaTok, images: Tensor) -> None:
    found = analyse(model, images, seed=5)
    assert set(found.costs) == {*SCORES, *CONTROLS}
    assert all(cost.shape == (4, 16) for cost in found.costs.values())
    everything = torch.ones(4, 16, dtype=torch.bool)
    one_shot = errors(model, images, ~everything) - errors(model, images, everything)
    assert torch.allclose(found.costs["one_shot"], one_shot, atol=1e-6)
    variance = images[2, :, 8:16, 24:32].var()  # patch 7 of a 4 × 4 grid: row 1, column 3
    assert torch.allclose(found.costs["variance"][2, 7], variance)
    first = keep_mask(found.costs["prefix"], Filter("top_k", 5))
    assert first.nonzero()[:5, 1].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found.costs["random"], analyse(model, images, seed=5).costs["random"])
    assert not torch.equal(found.costs["random"], analyse(model, images, seed=6).costs["random"])
    assert torch.equal(found.costs["entropy"], found.entropy)


def test_the_error_to_the_neighbours(model: TaTok) -> None:
    ramp = torch.arange(4.0).repeat_interleave(8) / 4  # by columns of patches
    images = ramp.expand(1, 3, 32, 32)
    error = neighbour_error(model, images).view(4, 4)
    # Inside, the mean of four neighbours is exact; at the left edge it is (0 + 0 + 1/4) / 3.
    assert torch.allclose(error[1:3, 1:3], torch.zeros(2, 2), atol=1e-10)
    assert float(error[1, 0]) == pytest.approx((1 / 12) ** 2)
    assert float(error[0, 0]) == pytest.approx((1 / 8) ** 2)


def test_decoding_goes_by_batches_and_may_take_other_globals(model: TaTok) -> None:
    images = torch.rand(19, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = analyse(model, images, controls=False)
    keep = torch.ones(19, 16, dtype=torch.bool)
    whole = model.decode(found.global_codes, found.patch_codes, keep)
    assert torch.allclose(decode(model, found, keep), whole, atol=1e-5)
    others = torch.arange(19).roll(1)
    swapped = decode(model, found, keep, globals_from=others)
    assert torch.allclose(
        swapped[4], model.decode(found.global_codes[3:4], found.patch_codes[4:5], keep[:1])[0], atol=1e-5
    )


def test_psnr_of_a_known_error() -> None:
    target = torch.rand(2, 3, 8, 8)
    assert torch.allclose(
        psnr(target + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), target),
        torch.tensor([20.0, 40.0]).double(),
        atol=1e-3,
    )


def test_ladders_of_every_score_reach_their_rungs(model: TaTok, images: Tensor) -> None:
    ladders = calibrate_ladders(model, images)
    assert set(ladders) == set(SCORES)
    costs = analyse(model, images, controls=False).costs
    for score, rules in ladders.items():
        for rule in ("threshold", "budget", "coverage"):
            kept = [rung[0] for rung in rules[rule]]
            assert kept == sorted(kept), (score, rule)
            for mean, value in rules[rule]:
                mask = keep_mask(costs[score], Filter(rule, value, score=score))
                assert mask.sum(1).double().mean() == mean
        percents = [rung[0] for rung in rules[PERCENTILES]]
        assert percents == list(PERCENTS)


def test_a_percentile_lies_above_its_share_of_the_costs() -> None:
    cost = torch.rand(50, 64, generator=torch.Generator().manual_seed(0))
    for percent, value in ladders_of(cost, min_patches=1)[PERCENTILES]:
        assert (cost < value).double().mean() == pytest.approx(percent / 100, abs=1e-3)
