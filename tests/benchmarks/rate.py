"""Rate–distortion training: what a weight λ on the nats of the codes buys, at equal nats and at equal token counts.

    python -m tests.benchmarks.rate --train GLOB --held-out GLOB [--joint-steps 1500]

For every λ it trains the same small tokenizer (64 px, 64 patches) from the same seed. An image costs the surprisal of
its global codes and of its kept patch codes, and the nats that say which patches were kept. The entropy model predicts
a kept code from all codes before it, dropped ones among them, which a receiver would not have: an estimate from below.

Letters: M images, N patches.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import find_image_shards
from tatok_pipe.encoding.panel import load_panel
from tatok_pipe.images.stream import TrainingImages
from tatok_pipe.runs.job import run_entry
from tatok_pipe.tokenizer.analysis import Analysis, analyse, decode, psnr
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokenizer.prior import surprisal_nats
from tatok_pipe.tokenizer.trainer import TokenizerTrainer, to_model_input
from tatok_pipe.tokenizer.training_options import LossConfig, MixConfig, TrainingConfig
from tests.benchmarks.tokenizer.measured import log_choices
from tests.benchmarks.tokenizer.report import table

WEIGHTS = (0.0, 0.0005, 0.002, 0.008)
KEEP_RATES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
TABLE_RATES = (1.0, 0.5, 0.25)
BATCH = 16


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--train", required=True, help="image shards")
    parser.add_argument("--held-out", required=True, help="image shards")
    parser.add_argument("--joint-steps", type=int, default=1500)
    options = parser.parse_args(argv)
    shards = [
        storage.canonical_url(shard.url) for shard in find_image_shards(options.train, option="--train")
    ]
    held_out = [
        storage.canonical_url(shard.url) for shard in find_image_shards(options.held_out, option="--held-out")
    ]
    images = load_panel(held_out, 64, 10_000)
    curves = {}
    for weight in WEIGHTS:
        start = time.monotonic()
        model = train(shards, weight=weight, joint_steps=options.joint_steps)
        curves[weight] = curve(model, images)
        flat = analyse(model, torch.full((1, 3, 64, 64), 0.5), controls=False)
        print(
            f"lambda {weight:g}: trained in {time.monotonic() - start:.0f} s, {curves[weight][1.0]}, grey image "
            f"{flat.surprisal.sum():.1f} nats", flush=True,
        )  # fmt: skip
    print()
    print(
        f"{len(images)} held-out images of 64 px, {options.joint_steps} joint steps of {BATCH}. Equal token counts:\n"
    )
    header = ["λ", *[f"PSNR at {rate:.0%} (nats/image)" for rate in TABLE_RATES]]
    rows = [
        [f"{weight:g}", *[f"{found[rate][1]:.2f} ({found[rate][0]:.0f})" for rate in TABLE_RATES]]
        for weight, found in curves.items()
    ]
    print(table(header, rows))
    print("\nEqual nats, the best over keep rates, PSNR interpolated:\n")
    budgets = equal_budgets(curves)
    rows = [
        [f"{weight:g}", *[f"{psnr_at(found, budget):.2f}" for budget in budgets]]
        for weight, found in curves.items()
    ]
    print(table(["λ", *[f"{budget:.0f} nats" for budget in budgets]], rows))
    return 0


def train(shards: list[str], *, weight: float, joint_steps: int) -> TaTok:
    torch.manual_seed(0)
    stack = StackConfig(width=128, depth=3, heads=4)
    grid = GridStackConfig(width=128, depth=3, heads=4, attend_every=1)
    codebook = GlobalQuantizerConfig(kind="fsq", levels=[8, 8, 8])
    model = TaTok(
        TaTokConfig(
            image_size=64, patch_size=8, num_globals=8, search_passes=0, encoder=grid, decoder=grid, prior=stack,
            global_codebook=codebook, patch_codebook=codebook,
        )
    )  # fmt: skip
    config = TrainingConfig(
        start="random", joint_steps=joint_steps, prior_steps=joint_steps // 3, decoder_steps=joint_steps // 5,
        batch_size=BATCH,
        learning_rate=2e-3, prior_learning_rate=2e-3, decoder_learning_rate=8e-4, warmup_steps=50, ema_decay=0.99,
        # The same for all: with λ of 0 the entropy model is trained along as well.
        mix=MixConfig(gain=0.0, entropy=0.1, drop_cost=0.25, random=0.15, globals_only=0.1),
        loss=LossConfig(log_l2=0, l2=4, perceptual=0, rate=weight),
    )  # fmt: skip
    trainer = TokenizerTrainer(model, config, seed=0)
    batches = iter(TrainingImages(shards, image_size=64, batch_size=BATCH, seed=0))
    for _ in range(config.num_steps):
        trainer.step(to_model_input(next(batches), "cpu"))
    return model.eval()


def curve(model: TaTok, images: torch.Tensor) -> dict[float, tuple[float, float]]:
    """By keep rate, on the default score: (nats an image, PSNR)."""
    found = analyse(model, images, controls=False)
    num_patches, fixed = model.config.num_patches, global_nats(model, found)
    points = {}
    for rate in KEEP_RATES:
        kept = round(rate * num_patches)
        keep = keep_mask(found.costs["drop_cost"], Filter("top_k", kept))
        nats = fixed + (found.surprisal * keep).sum(1).mean().item() + log_choices(num_patches, kept)
        points[rate] = (nats, psnr(decode(model, found, keep), images).mean().item())
    return points


def global_nats(model: TaTok, found: Analysis) -> float:
    """Surprisal of the global codes of an image, mean."""
    with torch.no_grad():
        nats = [
            surprisal_nats(model.predict(global_codes, patch_codes).global_logits, global_codes).sum(1)
            for global_codes, patch_codes in zip(
                found.global_codes.split(BATCH), found.patch_codes.split(BATCH), strict=True
            )
        ]
    return torch.cat(nats).mean().item()


def equal_budgets(curves: dict[float, dict[float, tuple[float, float]]]) -> np.ndarray:
    """Four rates that every curve reaches."""
    low = max(min(nats for nats, _ in found.values()) for found in curves.values())
    high = min(max(nats for nats, _ in found.values()) for found in curves.values())
    return np.linspace(low, high, 4)


def psnr_at(found: dict[float, tuple[float, float]], nats: float) -> float:
    points = sorted(found.values())
    # More nats need not be spent where fewer give more.
    best = np.maximum.accumulate([point[1] for point in points])
    return float(np.interp(nats, [point[0] for point in points], best))


if __name__ == "__main__":
    run_entry(main)
