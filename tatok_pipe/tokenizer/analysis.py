"""A set of images through a tokenizer, once: codes, entropies, and what each patch costs by every score and control.

Letters: M images in all, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats
from tatok_pipe.tokenizer.scores.table import SCORES

# What a score has to beat: chance, two measures of the pixels alone, the loss measured once and not in rounds, and a
# choice that does not look at the image.
CONTROLS = ("random", "variance", "neighbours", "one_shot", "prefix")
_BATCH_IMAGES = 16


@dataclass(frozen=True)
class Analysis:
    """Everything on the model's device."""

    images: Tensor  # (M, 3, H, W)
    global_codes: Tensor  # (M, K)
    patch_codes: Tensor  # (M, N)
    entropy: Tensor  # (M, N), nats
    surprisal: Tensor  # (M, N), nats
    costs: dict[str, Tensor]  # (M, N) each, by score or control


@torch.no_grad()
def analyse(model: TaTok, images: Tensor, *, controls: bool = True, seed: int = 0) -> Analysis:
    """Images (M, 3, H, W) in batches. `seed` is that of the random control."""
    parts = [_analyse_batch(model, batch, controls=controls) for batch in images.split(_BATCH_IMAGES)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    costs = {name: whole[f"cost {name}"] for name in (*SCORES, *CONTROLS) if f"cost {name}" in whole}
    if controls:
        random = torch.Generator().manual_seed(seed)
        costs["random"] = torch.rand(whole["entropy"].shape, generator=random).to(images.device)
    return Analysis(
        images, whole["global_codes"], whole["patch_codes"], whole["entropy"], whole["surprisal"], costs
    )


@torch.no_grad()
def decode(model: TaTok, analysis: Analysis, keep: Tensor, *, globals_from: Tensor | None = None) -> Tensor:
    """Images (M, 3, H, W) from the patches in `keep` (M, N). `globals_from` (M,) takes the globals of other images."""
    source = analysis.global_codes if globals_from is None else analysis.global_codes[globals_from]
    batches: Iterator[tuple[Tensor, Tensor, Tensor]] = zip(
        *(x.split(_BATCH_IMAGES) for x in (source, analysis.patch_codes, keep)), strict=True
    )
    return torch.cat([model.decode(*batch) for batch in batches])


def neighbour_error(model: TaTok, images: Tensor) -> Tensor:
    """Mean squared error of predicting each patch by the mean of those beside it, above and below: (M, N)."""
    side = model.config.grid_side
    patches = model.patchify(images).transpose(1, 2).unflatten(2, (side, side))  # (M, 3·p², side, side)

    def sum_beside(x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        return padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]

    count = sum_beside(torch.ones_like(patches[:1, :1])).clamp_min(1)  # a grid of one has no neighbours
    return (patches - sum_beside(patches) / count).square().mean(dim=1).flatten(1)


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB: (M, 3, H, W) in [0, 1], twice, to (M,)."""
    mse = (output - target).square().flatten(1).double().mean(1).clamp_min(1e-10)
    return -10 * mse.log10()


def _analyse_batch(model: TaTok, images: Tensor, *, controls: bool) -> dict[str, Tensor]:
    encoded = model.encode(images)
    global_codes, patch_codes = encoded.globals.codes, encoded.patches.codes
    logits = model.predict(global_codes, patch_codes).patch_logits
    entropy = entropy_nats(logits)
    found = {
        "global_codes": global_codes,
        "patch_codes": patch_codes,
        "entropy": entropy,
        "surprisal": surprisal_nats(logits, patch_codes),
    }
    found |= {f"cost {name}": model.cost(name, images, encoded, entropy=entropy) for name in SCORES}
    if controls:
        everything = torch.ones_like(patch_codes, dtype=torch.bool)
        missing = model.patch_error(images, encoded, ~everything)
        found["cost variance"] = model.patchify(images).var(dim=2)
        found["cost neighbours"] = neighbour_error(model, images)
        found["cost one_shot"] = missing - model.patch_error(images, encoded, everything)
        found["cost prefix"] = (
            -torch.arange(entropy.shape[1], device=images.device).expand_as(entropy).float()
        )
    return found
