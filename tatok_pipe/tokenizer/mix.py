"""How the patches of a training batch are filtered: a mix of kinds, so that one set of weights decodes any budget.

Letters: B images, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tatok_pipe.tokenizer.training_options import MixConfig

KINDS = tuple(field.name for field in fields(MixConfig))


@dataclass(frozen=True)
class Mix:
    """What the images of one batch are: `kind` (B,) int64 indexes KINDS, len(KINDS) means unfiltered; `keep_rate`
    (B,) float32 is the share of patches that filtered ones keep; `draw` (B, N) float32 orders patches by chance."""

    kind: Tensor
    keep_rate: Tensor
    draw: Tensor

    def part(self, first: int, last: int) -> Mix:
        """Images `first` to `last` - 1."""
        return Mix(self.kind[first:last], self.keep_rate[first:last], self.draw[first:last])

    def rows(self, kind: str) -> Tensor:
        """The images of a kind, (B,) bool."""
        return self.kind == KINDS.index(kind)


def draw_mix(
    config: MixConfig, *, num_images: int, num_patches: int, random: torch.Generator, device: torch.device
) -> Mix:
    """Every batch holds every kind in its share, as nearly as whole images allow; which image is of which kind, and
    its keep rate, is chance. The counts of the kinds depend on `num_images` alone."""
    keep_rate = torch.rand(num_images, generator=random)
    draw = torch.rand(num_images, num_patches, generator=random)
    place = (torch.randperm(num_images, generator=random) + 0.5) / num_images
    limits = torch.tensor([getattr(config, name) for name in KINDS]).cumsum(0)
    return Mix(
        torch.searchsorted(limits, place, right=True).to(device), keep_rate.to(device), draw.to(device)
    )


def keep_masks(mix: Mix, cost_of: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Keep masks (B, N) bool. `cost_of(kind, rows)` gives the costs of the images marked in `rows` (B,) bool, in
    their order, and is asked only where there are such."""
    keep = torch.ones_like(mix.draw, dtype=torch.bool)
    for kind in KINDS:
        rows = mix.rows(kind)
        if not bool(rows.any()):
            continue
        if kind == "globals_only":
            keep[rows] = False
            continue
        if kind == "random":
            cost = mix.draw[rows]
        elif kind == "prefix":
            cost = -torch.arange(keep.shape[1], device=keep.device).expand_as(keep[rows])
        else:
            cost = cost_of(kind, rows)
        num_kept = (mix.keep_rate[rows] * keep.shape[1]).round()[:, None]
        keep[rows] = cost.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < num_kept
    return keep
