"""Tokenizer training, one process: three stages over batches of images, with mixed filtering. Knows no Ray.

- decoder: the decoder's network on codes that do not change, while the drop-cost head learns from analysis by
  synthesis. Every batch mixes unfiltered, filtered, randomly filtered and globals-only samples, so that one set of
  weights decodes any budget and globals must carry what the patches share.
- joint: encoder, codewords and decoder on pixels and features, the latents on the codes that the search chose, and,
  where rate or masks need it, the entropy model on the codes as they form.
- prior: the tokenizer is frozen and the entropy model fitted to its final codes; a model trained along with drifting
  codes lags behind them.

They come in the order of `TrainingConfig.stages`. Every stage ends with the average of its weights. Letters: B
images, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokenizer.discriminator import Discriminator, adversarial_factor, discriminator_loss
from tatok_pipe.tokenizer.mix import draw_mix
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.perceptual import build_perceptual
from tatok_pipe.tokenizer.training_graph import Chance, TrainingGraph
from tatok_pipe.tokenizer.training_options import MixConfig, TrainingConfig
from tatok_pipe.training.ema import WeightAverage
from tatok_pipe.training.finite import check_step
from tatok_pipe.training.muon import Muon
from tatok_pipe.training.schedule import learning_rate

_CODES_PARTS = ("linear.", "global_quantizer.", "patch_quantizer.")
_ADVERSARIAL_RAMP_SHARE = (
    0.1  # of the steps before its start, in which the discriminator gets its full weight
)
_DISCRIMINATOR_BETAS = (0.5, 0.9)


class TokenizerTrainer:
    """A model, its optimizers, the average of its weights and the step counter. `step` advances by one batch.

    `wrap` makes a module data-parallel: it must average gradients over processes, and its `no_sync()` must keep a
    backward pass from doing so. All randomness of step s comes from a generator seeded with (seed, rank, s), so a
    resumed run draws what an uninterrupted one would have drawn.
    """

    def __init__(
        self,
        model: TaTok,
        config: TrainingConfig,
        *,
        seed: int,
        rank: int = 0,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ):
        self.model = model
        self.config = config
        self.seed = seed
        self.rank = rank
        self.num_steps_done = 0
        self.device = next(model.parameters()).device
        if config.is_compiled_on(self.device):
            networks = [network for network in (model.encoder, model.decoder) if network is not None]
            for stack in (*(network.blocks for network in networks), model.prior.transformer):
                for block in stack.blocks:  # blocks of a stack are alike, so one compilation serves all
                    block.compile(dynamic=False)
        loss = config.loss
        perceptual = (
            build_perceptual(
                loss.perceptual_features, self.device, option="training.loss.perceptual_features"
            )
            if loss.perceptual
            else None
        )
        self.discriminator = Discriminator(loss.discriminator).to(self.device) if loss.adversarial else None
        self.graph = TrainingGraph(model, config, perceptual=perceptual, discriminator=self.discriminator).to(
            self.device
        )
        wrap = wrap or (lambda module: module)
        self.network = wrap(self.graph)
        self.judge = wrap(self.discriminator) if self.discriminator is not None else None
        tokenizer = {name: p for name, p in model.named_parameters() if not name.startswith("prior.")}
        head = {name: p for name, p in tokenizer.items() if name.startswith("drop_cost_head.")}
        self.groups = {
            "encoder": [p for name, p in tokenizer.items() if name.startswith("encoder.")],
            "codes": [p for name, p in tokenizer.items() if name.startswith(_CODES_PARTS)],
            "decoder": [p for name, p in tokenizer.items() if name.startswith("decoder.")],
            "drop_cost": list(head.values()),
            "prior": [*model.prior.parameters(), *self.graph.rate_heads.parameters()],
        }
        inside = {id(p) for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}

        def decays(name: str, parameter: nn.Parameter) -> bool:
            return name != "codes" and parameter.ndim >= 2

        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if id(p) not in inside and decays(name, p) == decay],
                    "weight_decay": config.weight_decay if decay else 0.0,
                    "group": name,
                }
                for name, parameters in self.groups.items()
                for decay in (True, False)
            ],
            lr=0.0,
            betas=(0.9, 0.95),
        )
        # Steps of orthogonal matrices (arXiv 2502.16982), scaled by their shapes alone.
        self.matrix_optimizer = Muon(
            [
                {"params": [p for p in parameters if id(p) in inside], "group": name}
                for name, parameters in self.groups.items()
                if any(id(p) in inside for p in parameters)
            ],
            lr=0.0,
            weight_decay=config.weight_decay,
        )
        self.rate_factor = 1.0  # of all learning rates; see `slow_down`
        self.judge_optimizer = (
            torch.optim.AdamW(
                self.discriminator.parameters(), lr=0.0, betas=_DISCRIMINATOR_BETAS, weight_decay=0.0
            )
            if self.discriminator is not None
            else None
        )
        self.average = WeightAverage(model, decay=config.ema_decay) if config.ema_decay else None

    @property
    def stage(self) -> str:
        """Of the coming step. Raises RuntimeError after the last one."""
        return self._place()[0]

    def step(self, images: Tensor) -> dict[str, float]:
        """One optimizer step on images (B, 3, H, W) in [0, 1]; the losses of the step by name.

        `*_nats` are means over codes, `mse` is that of the mixed batch in [0, 1] pixels, `drop_cost` is in log units.
        Raises UserError where a loss or a gradient is not finite; no weight has moved then.
        """
        config = self.config
        stage, done, length = self._place()
        rates = self._learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["group"]]
        for group in self.matrix_optimizer.param_groups:
            group["lr"] = config.matrix_ratio * rates[group["group"]]
        for name, parameters in self.groups.items():
            for parameter in parameters:  # what stands still needs no gradient
                parameter.requires_grad_(rates[name] > 0)
        random = torch.Generator().manual_seed(hash_seed(self.seed, self.rank, self.num_steps_done))
        self.model.train()
        if stage != "joint":  # a frozen vq codebook must not move by its averages either
            self.model.global_quantizer.eval()
            self.model.patch_quantizer.eval()
        start = self.config.loss.adversarial_start_step
        heard = (
            adversarial_factor(self.num_steps_done, start, max(1, round(_ADVERSARIAL_RAMP_SHARE * start)))
            if self.judge is not None and stage != "prior"
            else 0.0
        )
        chance = self._draw(config.mix_at(stage, done=done, length=length), len(images), random)
        size = self.config.microbatch_size or len(images)
        sums: dict[str, Tensor] = {}
        for first in range(0, len(images), size):
            last = min(first + size, len(images))
            share = (last - first) / len(images)
            with self._sync(last == len(images)):
                terms = self._backward(
                    images[first:last], stage, chance.part(first, last), heard=heard, share=share
                )
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + share * value
        losses = {name: float(value) for name, value in sums.items()}
        groups = self.groups
        clipped = {
            "tokenizer": groups["encoder"] + groups["codes"] + groups["decoder"],
            "drop_cost": groups["drop_cost"],
            "prior": groups["prior"],
        }
        if self.discriminator is not None:
            clipped["discriminator"] = list(self.discriminator.parameters())
        norms = {
            name: nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
            for name, parameters in clipped.items()
        }
        figures = losses | {f"gradient of {name}": float(norm) for name, norm in norms.items()}
        check_step(
            figures,
            step=f"step {self.num_steps_done} ({stage})",
            advice="give a smaller training.learning_rate, or training.precision=fp32",
        )
        for optimizer in (self.optimizer, self.matrix_optimizer):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if heard and self.judge_optimizer is not None:
            for group in self.judge_optimizer.param_groups:
                group["lr"] = rates["decoder"]
            self.judge_optimizer.step()
            self.judge_optimizer.zero_grad(set_to_none=True)
        self.num_steps_done += 1
        if self.average is not None:
            self.average.update()
            if done + 1 == length:
                self.average.adopt()
        return losses | {"learning_rate": max(rates.values())}

    def _draw(self, mix: MixConfig | None, num_images: int, random: torch.Generator) -> Chance:
        """For this process's batch, whatever its micro-batches: every kind of mask has its share of that."""
        hides_globals = torch.rand(num_images, generator=random) < self.config.hide_globals
        drawn = mix and draw_mix(
            mix,
            num_images=num_images,
            num_patches=self.model.config.num_patches,
            random=random,
            device=self.device,
        )
        return Chance(hides_globals.to(self.device), drawn)

    def _backward(
        self, images: Tensor, stage: str, chance: Chance, *, heard: float, share: float
    ) -> dict[str, Tensor]:
        """Gradients of one micro-batch, which is `share` of this process's batch, and its losses."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        with self._autocast():
            found = self.network(images, stage, chance, heard)
        (found.loss * share).backward()
        terms = found.terms
        if heard and self.judge is not None and self.discriminator is not None:
            self.discriminator.requires_grad_(True)
            with self._autocast():
                # One pass for both: data parallelism expects a backward pass after every forward pass.
                real, fake = self.judge(torch.cat([images, found.output.detach()])).chunk(2)
                loss = discriminator_loss(real, fake)
            (loss * share).backward()
            terms = terms | {"discriminator": loss.detach()}
        return terms

    @contextmanager
    def _sync(self, is_last: bool) -> Iterator[None]:
        """Gradients are exchanged with the last micro-batch of a step alone."""
        with ExitStack() as stack:
            for module in () if is_last else (self.network, self.judge):
                if hasattr(module, "no_sync"):
                    no_sync: Any = module.no_sync  # type: ignore[union-attr]
                    stack.enter_context(no_sync())
            yield

    def _autocast(self) -> AbstractContextManager[Any]:
        is_bf16 = self.config.precision_on(self.device) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16)

    def _place(self) -> tuple[str, int, int]:
        """Stage of the coming step, steps done in it, and its length."""
        first = 0
        for stage in self.config.stages:
            length = getattr(self.config, f"{stage}_steps")
            if self.num_steps_done < first + length:
                return stage, self.num_steps_done - first, length
            first += length
        raise RuntimeError(f"training ended after {first} steps")

    def _learning_rates(self) -> dict[str, float]:
        stage, done, length = self._place()
        config = self.config

        def rate(peak: float, factor: float = self.rate_factor) -> float:
            return factor * learning_rate(config.schedule(peak), step=done, num_steps=length)

        still = dict.fromkeys(self.groups, 0.0)
        # The entropy model moves no picture: what slows the others down is not its fault.
        prior = {"prior": rate(config.prior_learning_rate, 1.0)}
        if stage == "joint":
            rates = dict.fromkeys(("encoder", "decoder", "drop_cost"), rate(config.learning_rate))
            return rates | prior | {"codes": rate(config.codes_peak)}
        if stage == "prior":
            return still | prior
        rates = still | {"decoder": rate(config.decoder_learning_rate)}
        first = config.first_synthesis_step(length)
        if done >= first:
            # The head is read by nothing that is trained, so it may learn as fast as it does in the joint stage.
            schedule = config.schedule(config.learning_rate)
            head = learning_rate(schedule, step=done - first, num_steps=length - first)
            rates["drop_cost"] = self.rate_factor * head
        return rates

    def slow_down(self) -> None:
        """Half of every learning rate from here on, but for the entropy model's."""
        self.rate_factor /= 2

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors (weights, optimizers, average, by name) and counters; neither needs pickling."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"rate.{name}": value for name, value in self.graph.rate_heads.state_dict().items()}
        if self.discriminator is not None:
            tensors |= {
                f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()
            }
        for kind, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{kind}.{index}.{name}": value for name, value in state.items()}
        counters = {"num_steps_done": self.num_steps_done, "rate_factor": self.rate_factor}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
            counters["num_average_updates"] = self.average.num_updates
        return tensors, counters

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, float]) -> None:
        self.num_steps_done = int(counters["num_steps_done"])
        self.rate_factor = counters["rate_factor"]
        by_kind: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            by_kind.setdefault(kind, {})[rest] = value
        self.model.load_state_dict(by_kind["model"])
        self.graph.rate_heads.load_state_dict(by_kind.get("rate", {}))
        if self.discriminator is not None:
            self.discriminator.load_state_dict(by_kind["discriminator"])
        for kind, optimizer in self._optimizers().items():
            state = optimizer.state_dict()
            state["state"] = {}
            for name, value in by_kind.get(kind, {}).items():
                index, field = name.split(".", 1)
                state["state"].setdefault(int(index), {})[field] = value
            optimizer.load_state_dict(state)
        if self.average is not None:
            for name, value in by_kind["average"].items():
                self.average.weights[name].copy_(value)
            self.average.num_updates = int(counters["num_average_updates"])

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = {
            "optimizer": self.optimizer,
            "matrix_optimizer": self.matrix_optimizer,
            "judge": self.judge_optimizer,
        }
        return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def to_model_input(batch: np.ndarray, device: torch.device | str) -> Tensor:
    """Pixels (B, S, S, 3) uint8 to images (B, 3, S, S) float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2).float().div_(255)
