"""Figures of a tokenizer on images that it never saw, and the calibration of its filters on images that it did.

Letters: M images in all, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tatok_pipe.tokenizer.dtf import CALIBRATED_RULES, DTFConfig, Filter, calibrate, keep_mask, resolve
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats

# Shares of patches that the rungs of a ladder keep on average.
RUNGS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
KEEP_RATES = (0.75, 0.5, 0.25)
_BATCH_IMAGES = 16


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB: (M, 3, H, W) in [0, 1], twice, to (M,)."""
    mse = (output - target).square().flatten(1).double().mean(1).clamp_min(1e-10)
    return -10 * mse.log10()


@torch.no_grad()
def calibrate_ladders(
    model: TaTok, images: Tensor, *, min_patches: int = 1
) -> dict[str, dict[str, list[list[float]]]]:
    """For each score and rule, rungs [mean kept patches, value] measured on images (M, 3, H, W)."""
    codes = [_encode(model, batch) for batch in _batches(images)]
    cost = torch.cat([entropy for _, _, entropy, _ in codes])  # (M, N)
    ladders: dict[str, list[list[float]]] = {}
    for rule in CALIBRATED_RULES:
        rungs = []
        for share in RUNGS:
            value = calibrate(cost, rule=rule, target_patches=share * cost.shape[1], min_patches=min_patches)
            kept = keep_mask(cost, Filter(rule, value, min_patches=min_patches)).sum(1).double().mean().item()
            rungs.append([kept, value])
        ladders[rule] = rungs
    return {"entropy": ladders}


@torch.no_grad()
def measure(
    model: TaTok, images: Tensor, ladders: dict[str, dict[str, list[list[float]]]], *, seed: int
) -> dict[str, Any]:
    """Figures on images (M, 3, H, W), as plain numbers.

    At each of KEEP_RATES the same count of patches is kept in every image by the model's entropies, by chance
    and by pixel variance (`top_k`), and with one `threshold` for all images at the same mean count.
    PSNR is the mean over images, dB.
    """
    config = model.config
    num_patches = config.num_patches
    parts = [_encode(model, batch) for batch in _batches(images)]
    global_codes, patch_codes, entropy, surprisal = (torch.cat(column) for column in zip(*parts, strict=True))
    random = torch.Generator().manual_seed(seed)
    scores = {
        "entropy": entropy,
        "random": torch.rand(entropy.shape, generator=random).to(entropy.device),
        "variance": model.patchify(images).var(dim=2),
    }

    def quality(keep: Tensor, globals_from: Tensor | None = None) -> Tensor:
        source = global_codes if globals_from is None else global_codes[globals_from]
        decoded = [
            model.decode(g, p, k)
            for g, p, k in zip(*(_batches(x) for x in (source, patch_codes, keep)), strict=True)
        ]
        return psnr(torch.cat(decoded), images)  # (M,)

    everything = torch.ones_like(entropy, dtype=torch.bool)
    nothing = ~everything
    globals_only = quality(nothing)
    others = torch.arange(len(images), device=images.device).roll(1)
    rows = []
    for rate in KEEP_RATES:
        kept = round(rate * num_patches)
        row: dict[str, float] = {"kept_share": rate}
        for name, score in scores.items():
            row[f"psnr_{name}"] = quality(keep_mask(score, Filter("top_k", kept))).mean().item()
        value = calibrate(entropy, rule="threshold", target_patches=kept, min_patches=1)
        masks = keep_mask(entropy, Filter("threshold", value))
        row["psnr_threshold"] = quality(masks).mean().item()
        row["tokens_threshold_mean"] = config.num_globals + masks.sum(1).double().mean().item()
        row["tokens_threshold_std"] = masks.sum(1).double().std().item()
        rows.append(row)
    flat = images.new_full((1, 3, config.image_size, config.image_size), 0.5)
    default = resolve(DTFConfig(), ladders=ladders, num_globals=config.num_globals, num_patches=num_patches)
    calibrated = keep_mask(entropy, default).sum(1).double()
    return {
        "num_images": len(images),
        "psnr_none": quality(everything).mean().item(),
        "psnr_globals_only": globals_only.mean().item(),
        "psnr_globals_shuffled": quality(nothing, others).mean().item(),
        "filtered": rows,
        "default_threshold_nats": default.value,
        "default_tokens_mean": config.num_globals + calibrated.mean().item(),
        "default_tokens_std": calibrated.std().item(),
        "default_tokens_min": config.num_globals + calibrated.min().item(),
        "default_tokens_max": config.num_globals + calibrated.max().item(),
        "flat_image_patches": int(keep_mask(_encode(model, flat)[2], default).sum()),
        "entropy_mean_nats": entropy.mean().item(),
        "surprisal_mean_nats": surprisal.mean().item(),
        "patch_codes_used_share": patch_codes.unique().numel() / model.patch_quantizer.vocab_size,
        "global_codes_used_share": global_codes.unique().numel() / model.global_quantizer.vocab_size,
    }


def _encode(model: TaTok, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Global codes, patch codes, entropies and surprisals of a batch."""
    global_quantized, patch_quantized = model.quantize(images)
    logits = model.predict(global_quantized.codes, patch_quantized.codes).patch_logits
    return (
        global_quantized.codes,
        patch_quantized.codes,
        entropy_nats(logits),
        surprisal_nats(logits, patch_quantized.codes),
    )


def _batches(x: Tensor) -> Iterator[Tensor]:
    return iter(x.split(_BATCH_IMAGES))
