"""Tokenizer training, one process: three stages over batches of images, with mixed filtering. Knows no Ray.

1. joint: encoder, quantizers and decoder on pixels, the entropy model on the codes as they form. Every batch
   mixes unfiltered, DTF-filtered, randomly filtered and globals-only samples, so that one set of weights
   decodes any budget and globals must carry what the patches share.
2. prior: the tokenizer is frozen and the entropy model fitted to its final codes; a model trained along with
   drifting codes lags behind them.
3. decoder: decoder fine-tuning on the masks that the final entropies give.

Letters: B images, K globals, N patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tatok_pipe.options import option, section
from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokenizer.losses import LossConfig, code_loss, pixel_losses
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import entropy_nats

STAGES = ("joint", "prior", "decoder")


@dataclass(frozen=True)
class MixConfig:
    """Shares of a batch by how its patches are filtered; what is left of 1 stays unfiltered."""

    entropy: float = option(
        0.35, help="DTF-filtered samples, keep rate uniform over 0 to 1", unit="share of batch"
    )
    random: float = option(
        0.25, help="randomly filtered samples, keep rate uniform over 0 to 1", unit="share of batch"
    )
    globals_only: float = option(0.15, help="samples that keep no patch", unit="share of batch")

    def __post_init__(self) -> None:
        shares = (self.entropy, self.random, self.globals_only)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"entropy, random, globals_only = {shares}: expected shares of 0 or more, together at most 1"
            )


@dataclass(frozen=True)
class TrainingConfig:
    joint_steps: int = option(60_000, help="length of the joint stage", unit="steps")
    prior_steps: int = option(15_000, help="length of the entropy model's stage", unit="steps")
    decoder_steps: int = option(15_000, help="length of the decoder's stage", unit="steps")
    batch_size: int = option(256, help="images a step", unit="images, over all workers")
    learning_rate: float = option(3e-4, help="peak of the joint stage", unit="per step")
    prior_learning_rate: float = option(
        3e-4, help="peak of the entropy model, in both of its stages", unit="per step"
    )
    decoder_learning_rate: float = option(1e-4, help="peak of the decoder's stage", unit="per step")
    warmup_steps: int = option(1_000, help="linear warm-up at the start of every stage", unit="steps")
    weight_decay: float = option(0.05, help="AdamW, matrices only", unit="per step and learning rate")
    clip_norm: float = option(1.0, help="gradient norm, tokenizer and entropy model apart", unit="L2 norm")
    hide_globals: float = option(
        0.15, help="images whose globals the entropy model does not see", unit="share of batch"
    )
    mix: MixConfig = section(MixConfig, help="how the samples of a batch are filtered")
    loss: LossConfig = section(LossConfig, help="weights of the losses")

    def __post_init__(self) -> None:
        counts = (self.joint_steps, self.prior_steps, self.decoder_steps, self.warmup_steps)
        if min(counts) < 0 or self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                "joint_steps, prior_steps, decoder_steps, warmup_steps: expected 0 or more, some step "
                "to do, and batch_size of at least 1"
            )
        if not 0 <= self.hide_globals < 1:
            raise ValueError(f"hide_globals={self.hide_globals}: expected a share below 1")

    @property
    def num_steps(self) -> int:
        return self.joint_steps + self.prior_steps + self.decoder_steps


class TokenizerTrainer:
    """A model, its optimizer and the step counter. `step` advances by one batch.

    All randomness of step s comes from a generator seeded with (seed, rank, s), so a resumed run draws what an
    uninterrupted one would have drawn.
    """

    def __init__(
        self,
        model: TaTok,
        config: TrainingConfig,
        *,
        seed: int,
        rank: int = 0,
        wrapped: nn.Module | None = None,
    ):
        self.model = model
        self.config = config
        self.seed = seed
        self.rank = rank
        self.num_steps_done = 0
        self.network = wrapped if wrapped is not None else TrainingGraph(model)
        prior = dict(model.prior.named_parameters())
        tokenizer = {name: p for name, p in model.named_parameters() if not name.startswith("prior.")}
        decoder_parts = ("from_", "dropped", "decoder", "to_pixels")
        self.groups = {
            "encoder": [p for name, p in tokenizer.items() if not name.startswith(decoder_parts)],
            "decoder": [p for name, p in tokenizer.items() if name.startswith(decoder_parts)],
            "prior": list(prior.values()),
        }
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if (p.ndim >= 2) == decays],
                    "weight_decay": config.weight_decay if decays else 0.0,
                    "group": name,
                }
                for name, parameters in self.groups.items()
                for decays in (True, False)
            ],
            lr=0.0,
            betas=(0.9, 0.95),
        )

    @property
    def stage(self) -> str:
        stage, _, _ = self._place()
        return stage

    def step(self, images: Tensor) -> dict[str, float]:
        """One optimizer step on images (B, 3, H, W) in [0, 1]; the losses of the step by name.

        `*_nats` are means over codes, `mse` is that of the mixed batch in [0, 1] pixels.
        """
        stage, _, _ = self._place()
        rates = self._learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["group"]]
        random = torch.Generator().manual_seed(hash_seed(self.seed, self.rank, self.num_steps_done))
        self.model.train()
        if stage != "joint":  # a frozen vq codebook must not move by its averages either
            self.model.global_quantizer.eval()
            self.model.patch_quantizer.eval()
        loss, terms = self.network(images, stage, self.config, random)
        loss.backward()
        autoencoder = self.groups["encoder"] + self.groups["decoder"]
        for parameters in (autoencoder, self.groups["prior"]):
            nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps_done += 1
        return {name: float(value) for name, value in terms.items()} | {"learning_rate": max(rates.values())}

    def _place(self) -> tuple[str, int, int]:
        """Stage of the coming step, steps done in it, and its length."""
        first = 0
        for stage in STAGES:
            length = getattr(self.config, f"{stage}_steps")
            if self.num_steps_done < first + length:
                return stage, self.num_steps_done - first, length
            first += length
        raise RuntimeError(f"training ended after {first} steps")

    def _learning_rates(self) -> dict[str, float]:
        stage, done, length = self._place()
        config = self.config
        warmup = min(1.0, (done + 1) / max(1, min(config.warmup_steps, length)))
        shape = warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / length)))
        peaks = {
            "joint": (config.learning_rate, config.learning_rate, config.prior_learning_rate),
            "prior": (0.0, 0.0, config.prior_learning_rate),
            "decoder": (0.0, config.decoder_learning_rate, 0.0),
        }[stage]
        return {name: peak * shape for name, peak in zip(("encoder", "decoder", "prior"), peaks, strict=True)}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors (model and optimizer, by name) and counters; neither needs pickling."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return tensors, {"num_steps_done": self.num_steps_done}

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        self.num_steps_done = counters["num_steps_done"]
        model, optimizer = {}, self.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "model":
                model[rest] = value
            else:
                index, field = rest.split(".", 1)
                optimizer["state"].setdefault(int(index), {})[field] = value
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


class TrainingGraph(nn.Module):
    """The forward pass of one training step, as a module, so that data parallelism can wrap it."""

    def __init__(self, model: TaTok):
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, stage: str, config: TrainingConfig, random: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        with torch.set_grad_enabled(stage == "joint"):
            global_quantized, patch_quantized = model.quantize(images)
        hidden = torch.rand(len(images), generator=random) < (
            config.hide_globals if stage != "decoder" else 0.0
        )
        hidden = hidden.to(images.device)
        with torch.set_grad_enabled(stage != "decoder"):
            prior = model.predict(global_quantized.codes, patch_quantized.codes, without_globals=hidden)
        terms: dict[str, Tensor] = {}
        loss = images.new_zeros(())
        if stage != "decoder":
            global_nats, patch_nats = code_loss(
                prior, global_quantized.codes, patch_quantized.codes, without_globals=hidden
            )
            loss = loss + global_nats + patch_nats
            terms |= {"global_nats": global_nats.detach(), "patch_nats": patch_nats.detach()}
        if stage != "prior":
            entropy = entropy_nats(prior.patch_logits.detach())
            keep = mixed_masks(entropy, config.mix, random)
            output = model.reconstruct(global_quantized.vectors, patch_quantized.vectors, keep)
            l1, l2 = pixel_losses(output, images)
            commitment = global_quantized.commitment + patch_quantized.commitment
            loss = loss + config.loss.l1 * l1 + config.loss.l2 * l2 + config.loss.commitment * commitment
            terms |= {"l1": l1.detach(), "mse": l2.detach()}
            if commitment.requires_grad:
                terms["commitment"] = commitment.detach()
        return loss, terms


def mixed_masks(entropy: Tensor, mix: MixConfig, random: torch.Generator) -> Tensor:
    """Keep masks (B, N) bool for a training batch, from entropies (B, N): the kinds of `mix`, in shuffled order."""
    batch, num_patches = entropy.shape
    device = entropy.device
    rate = torch.rand(batch, 1, generator=random).to(device)
    draw = torch.rand(batch, num_patches, generator=random).to(device)
    # Stratified, so that a small batch holds every kind in its share.
    place = (torch.randperm(batch, generator=random).to(device) + 0.5)[:, None] / batch  # (B, 1)
    num_kept = (rate * num_patches).round()
    by_entropy = entropy.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < num_kept
    by_chance = draw.argsort(dim=1).argsort(dim=1) < num_kept
    keep = torch.ones_like(by_entropy)
    keep = torch.where(place < mix.entropy + mix.random + mix.globals_only, torch.zeros_like(keep), keep)
    keep = torch.where(place < mix.entropy + mix.random, by_chance, keep)
    return torch.where(place < mix.entropy, by_entropy, keep)


def to_model_input(batch: np.ndarray, device: torch.device | str) -> Tensor:
    """Pixels (B, S, S, 3) uint8 to images (B, 3, S, S) float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2).float().div_(255)
