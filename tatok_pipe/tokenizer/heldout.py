"""Figures of a tokenizer on images that it never saw.

Letters: M images in all, N patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tatok_pipe.tokenizer.analysis import CONTROLS, Analysis, analyse, decode, psnr
from tatok_pipe.tokenizer.calibration import Ladders
from tatok_pipe.tokenizer.dtf import Filter, calibrate, keep_mask, resolve
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.scores.table import SCORES

KEEP_RATES = (0.75, 0.5, 0.25, 0.22)  # 0.22 of 256 are the paper's 56 tokens


@torch.no_grad()
def measure(model: TaTok, images: Tensor, ladders: Ladders, *, seed: int) -> dict[str, Any]:
    """Figures on images (M, 3, H, W), as plain numbers.

    At each of KEEP_RATES the same count of patches is kept in every image, by every score and control (`top_k`), and
    with one `threshold` on the default score for all images at the same mean count. PSNR is the mean over images, dB.
    One image has neither a spread nor another image: the figures that need one are None.
    """
    config = model.config
    analysis = analyse(model, images, seed=seed)
    everything = torch.ones_like(analysis.patch_codes, dtype=torch.bool)
    others = torch.arange(len(images), device=images.device).roll(1)

    def quality(keep: Tensor, globals_from: Tensor | None = None) -> float:
        return psnr(decode(model, analysis, keep, globals_from=globals_from), images).mean().item()

    def spread(tokens: Tensor) -> float | None:
        return tokens.double().std(correction=0).item() if len(tokens) > 1 else None

    rows = []
    for rate in KEEP_RATES:
        kept = round(rate * config.num_patches)
        row: dict[str, Any] = {"kept_share": rate, "psnr": {}}
        for name in (*SCORES, *CONTROLS):
            row["psnr"][name] = quality(keep_mask(analysis.costs[name], Filter("top_k", kept)))
        cost = analysis.costs[DTFConfig().score]
        value = calibrate(cost, rule="threshold", target_patches=kept, min_patches=1)
        masks = keep_mask(cost, Filter("threshold", value))
        row["psnr_threshold"] = quality(masks)
        row["tokens_threshold_mean"] = config.num_globals + masks.sum(1).double().mean().item()
        row["tokens_threshold_std"] = spread(masks.sum(1))
        rows.append(row)
    default = _default_filter(model, ladders)
    calibrated = config.num_globals + keep_mask(analysis.costs[default.score], default).sum(1).double()
    flat = images.new_full((1, 3, config.image_size, config.image_size), 0.5)
    return {
        "num_images": len(images),
        "psnr_none": quality(everything),
        "psnr_globals_only": quality(~everything),
        "psnr_globals_shuffled": quality(~everything, others) if len(images) > 1 else None,
        "psnr_all_but_globals_shuffled": quality(everything, others) if len(images) > 1 else None,
        "filtered": rows,
        "default_score": default.score,
        "default_threshold": default.value,
        "default_tokens_mean": calibrated.mean().item(),
        "default_tokens_std": spread(calibrated),
        "default_tokens_min": calibrated.min().item(),
        "default_tokens_max": calibrated.max().item(),
        "flat_image_patches": int(model.tokenize(flat, default).keep.sum()),
        "entropy_mean_nats": analysis.entropy.mean().item(),
        "surprisal_mean_nats": analysis.surprisal.mean().item(),
        **_code_use(analysis, model),
    }


def _default_filter(model: TaTok, ladders: Ladders) -> Filter:
    """What DTFConfig's defaults mean for this checkpoint; after a training too short to tell patches apart, the rung
    in the middle."""
    config = model.config
    try:
        return resolve(
            DTFConfig(), ladders=ladders, num_globals=config.num_globals, num_patches=config.num_patches
        )
    except ValueError:
        rungs = ladders[DTFConfig().score]["threshold"]
        return Filter("threshold", rungs[len(rungs) // 2][1], score=DTFConfig().score)


def _code_use(analysis: Analysis, model: TaTok) -> dict[str, float]:
    """How much of the codebooks the images use, and the perplexity exp(H) of single codes."""
    figures = {}
    for name, codes, size in (
        ("patch", analysis.patch_codes, model.patch_quantizer.vocab_size),
        ("global", analysis.global_codes, model.global_quantizer.vocab_size),
    ):
        share = torch.bincount(codes.flatten(), minlength=size).double() / max(1, codes.numel())
        figures[f"{name}_codes_used_share"] = (share > 0).double().mean().item()
        figures[f"{name}_codes_perplexity"] = torch.special.entr(share).sum().exp().item()
    return figures
