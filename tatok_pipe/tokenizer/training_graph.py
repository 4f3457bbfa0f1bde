"""The forward pass of one step of tokenizer training, as a module, so that data parallelism can wrap it.

Letters: B images, K globals, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tatok_pipe.tokenizer.discriminator import Discriminator, adaptive_weight, generator_loss
from tatok_pipe.tokenizer.encoded import Encoded
from tatok_pipe.tokenizer.losses import code_loss, drop_cost_loss, pixel_losses, shown_mean
from tatok_pipe.tokenizer.mix import Mix, keep_masks
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import PriorOutput, entropy_nats
from tatok_pipe.tokenizer.quantizer import FSQ
from tatok_pipe.tokenizer.rate import RateHead, scale_gradient
from tatok_pipe.tokenizer.training_options import TrainingConfig

_GAIN_NOISE = 0.5  # gains are multiplied by a number from here to 1 more


@dataclass(frozen=True)
class Chance:
    """What is drawn for the images of a pass: which ones the entropy model reads without globals, (B,) bool, and how
    their patches are filtered where a decoder is trained."""

    hides_globals: Tensor
    mix: Mix | None

    def part(self, first: int, last: int) -> Chance:
        """Images `first` to `last` - 1."""
        return Chance(self.hides_globals[first:last], self.mix and self.mix.part(first, last))


@dataclass
class StepOutput:
    """`loss` () to minimise, its terms by name, and what the decoder made of the images where there is a decoder to
    train, (B, 3, H, W)."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None

    def add(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        self.loss = self.loss + weight * value
        self.terms[name] = value.detach()


class TrainingGraph(nn.Module):
    """`perceptual` (B, 3, H, W) twice to (B,) and `discriminator` are read and not trained here."""

    def __init__(
        self,
        model: TaTok,
        config: TrainingConfig,
        *,
        perceptual: nn.Module | None = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self._others = (perceptual, discriminator)  # a tuple, so that they are no part of this module
        self.rate_heads = nn.ModuleDict()
        if config.loss.rate:
            for name, quantizer in (
                ("global", model.global_quantizer),
                ("patch", model.patch_quantizer),
            ):
                if not isinstance(quantizer, FSQ):
                    raise ValueError("loss.rate: codes have a differentiable rate with fsq only")
                self.rate_heads[name] = RateHead(model.config.prior.width, quantizer)

    def forward(self, images: Tensor, stage: str, chance: Chance, adversarial_factor: float) -> StepOutput:
        """One pass over images (B, 3, H, W). `adversarial_factor` in [0, 1] says how far the discriminator is heard."""
        step = StepOutput(images.new_zeros(()))
        with torch.set_grad_enabled(stage == "joint"):
            # One pass of search is enough to train on, and a second would not teach more.
            passes = min(self.model.config.search_passes, 1) if stage != "prior" else None
            encoded = self.model.encode(images, search_passes=passes)
        prior = None
        if stage == "prior" or (stage == "joint" and self.config.is_prior_in_joint):
            prior = self._add_code_losses(step, encoded, chance.hides_globals, rate=stage == "joint")
        if chance.mix is not None:
            self._add_decoder_losses(step, images, encoded, prior, stage, chance.mix, adversarial_factor)
        return step

    def _add_code_losses(
        self, step: StepOutput, encoded: Encoded, hidden: Tensor, *, rate: bool
    ) -> PriorOutput:
        """The entropy model's own losses. What of them reaches the encoder is scaled by λ; see `rate`."""
        weight = self.config.loss.rate if rate else 0.0
        global_vectors = scale_gradient(encoded.globals.vectors, weight)
        patch_vectors = scale_gradient(encoded.patches.vectors, weight)
        prior: PriorOutput = self.model.prior(
            *self.model.scaled(global_vectors, patch_vectors), without_globals=hidden
        )
        global_nats, patch_nats = code_loss(
            prior, encoded.globals.codes, encoded.patches.codes, without_globals=hidden
        )
        step.add("global_nats", global_nats)
        step.add("patch_nats", patch_nats)
        if weight:
            states = prior.hidden.split([global_vectors.shape[1], patch_vectors.shape[1]], dim=1)
            global_rate = self.rate_heads["global"](states[0], global_vectors)  # (B, K)
            step.add("global_rate_nats", shown_mean(global_rate, ~hidden))
            step.add("patch_rate_nats", self.rate_heads["patch"](states[1], patch_vectors).mean())
        return prior

    def _add_decoder_losses(
        self,
        step: StepOutput,
        images: Tensor,
        encoded: Encoded,
        prior: PriorOutput | None,
        stage: str,
        mix: Mix,
        adversarial_factor: float,
    ) -> None:
        model, loss = self.model, self.config.loss
        log_cost = model.log_drop_cost(encoded)  # (B, N)
        synthesis: list[Tensor] = []  # the costs of the rows that are filtered by them

        @torch.no_grad()
        def cost_of(kind: str, rows: Tensor) -> Tensor:
            if kind == "drop_cost":
                return log_cost[rows]
            if kind == "gain":  # and not always in its order, as scores differ
                return encoded.gain[rows] * (_GAIN_NOISE + mix.draw[rows])
            some = encoded.rows(rows)
            if kind == "synthesis":
                synthesis.append(model.cost("synthesis", images[rows], some))
                return synthesis[0]
            if prior is not None:
                return entropy_nats(prior.patch_logits[rows])
            return model.patch_entropy(some.globals.codes, some.patches.codes)

        keep = keep_masks(mix, cost_of)  # (B, N)
        output = model.reconstruct(encoded.globals.vectors, encoded.patches.vectors, keep).float()
        step.output = output
        l1, l2, log_l2 = pixel_losses(output, images)
        step.add("l1", l1, loss.l1)
        step.add("mse", l2, loss.l2)
        step.add("log_mse", log_l2, loss.log_l2)
        if stage == "joint":
            asked = {model.global_quantizer.regularizer: encoded.globals.regularizer}
            name = model.patch_quantizer.regularizer
            asked[name] = asked.get(name, 0.0) + encoded.patches.regularizer
            for name, value in asked.items():
                step.add(name, value, getattr(loss, name))
        perceptual, discriminator = self._others
        if perceptual is not None:
            step.add("perceptual", perceptual(output, images).mean(), loss.perceptual)
        if discriminator is not None and adversarial_factor:
            reconstruction = step.loss
            verdict = generator_loss(discriminator(output))
            balance = adaptive_weight(reconstruction, verdict, self.model.decoder.to_pixels.weight)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(balance)
                balance = balance / dist.get_world_size()
            step.add("adversarial", verdict, loss.adversarial * adversarial_factor * balance)
            step.terms["adaptive_weight"] = balance
        if stage == "decoder" and self.config.decoder_mix.synthesis:
            if synthesis:
                rows = mix.rows("synthesis")
                step.add("drop_cost", drop_cost_loss(log_cost[rows].flatten(), synthesis[0].flatten()))
        else:
            self._add_drop_cost_by_chance(step, images, encoded, mix, keep, log_cost)

    def _add_drop_cost_by_chance(
        self, step: StepOutput, images: Tensor, encoded: Encoded, mix: Mix, keep: Tensor, log_cost: Tensor
    ) -> None:
        """The head learns what the randomly masked patches have lost against the picture with all patches."""
        rows = mix.rows("random")
        if step.output is None or not bool(rows.any()):
            return
        with torch.no_grad():
            some, target = encoded.rows(rows), images[rows]
            best = self.model.patch_error(target, some, torch.ones_like(keep[rows]))
            masked = self.model.patchify((step.output[rows].clamp(0, 1) - target).square()).mean(dim=2)
        lost = ~keep[rows]
        step.add("drop_cost", drop_cost_loss(log_cost[rows][lost], (masked - best)[lost]))
