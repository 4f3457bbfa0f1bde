"""The mix of a training batch: every kind in its share, masks by the costs that were asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tatok_pipe.tokenizer.mix import KINDS, Mix, draw_mix, keep_masks
from tatok_pipe.tokenizer.training_options import MixConfig

MIX = MixConfig(
    gain=0.0, entropy=0.1, drop_cost=0.25, synthesis=0.15, random=0.2, prefix=0.1, globals_only=0.1
)
CPU = torch.device("cpu")


def draw(seed: int, num_images: int = 40, config: MixConfig = MIX) -> Mix:
    random = torch.Generator().manual_seed(seed)
    return draw_mix(config, num_images=num_images, num_patches=64, random=random, device=CPU)


def test_a_batch_holds_every_kind_in_its_share() -> None:
    counts = {name: int(draw(0).rows(name).sum()) for name in KINDS}
    assert counts == {
        "gain": 0,
        "entropy": 4,
        "drop_cost": 10,
        "synthesis": 6,
        "random": 8,
        "prefix": 4,
        "globals_only": 4,
    }
    assert int((draw(0).kind == len(KINDS)).sum()) == 4


def test_the_counts_depend_on_the_number_of_images_alone() -> None:
    for num_images in (1, 3, 7, 16):
        first, second = draw(1, num_images), draw(2, num_images)
        assert sorted(first.kind.tolist()) == sorted(second.kind.tolist())
        assert num_images < 7 or first.kind.tolist() != second.kind.tolist()


def test_the_same_seed_gives_the_same_mix() -> None:
    first, second = draw(3), draw(3)
    assert torch.equal(first.kind, second.kind) and torch.equal(first.draw, second.draw)
    assert torch.equal(first.keep_rate, second.keep_rate)


def test_masks_keep_the_dearest_patches_of_their_own_costs() -> None:
    mix = draw(4)
    costs = {
        name: torch.rand(40, 64, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate(("entropy", "drop_cost", "synthesis"))
    }
    asked: list[str] = []

    def cost_of(kind: str, rows: Tensor) -> Tensor:
        asked.append(kind)
        return costs[kind][rows]

    keep = keep_masks(mix, cost_of)
    assert asked == ["entropy", "drop_cost", "synthesis"]
    counts = keep.sum(1)
    for row in range(40):
        name = (*KINDS, "unfiltered")[int(mix.kind[row])]
        if name == "globals_only":
            assert counts[row] == 0
        elif name == "unfiltered":
            assert counts[row] == 64
        else:
            assert counts[row] == round(float(mix.keep_rate[row]) * 64)
            place = -torch.arange(64).expand(40, 64)
            cost = (costs | {"random": mix.draw, "prefix": place})[name][row]
            if 0 < counts[row] < 64:
                assert cost[keep[row]].min() > cost[~keep[row]].max()


def test_nothing_is_asked_for_where_no_image_needs_it() -> None:
    def cost_of(kind: str, rows: Tensor) -> Tensor:
        raise AssertionError(kind)

    chance = MixConfig(gain=0, random=0.5, globals_only=0.5)
    keep = keep_masks(draw(5, config=chance), cost_of)
    assert int((keep.sum(1) == 0).sum()) >= 20


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"entropy=0\.6, .*random=0\.6"):
        MixConfig(entropy=0.6, random=0.6)
    with pytest.raises(ValueError, match="^random=-0.1: expected at least 0"):
        MixConfig(random=-0.1)
