"""The options of tokenizer training, without Ray's and the data's."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.training.schedule import ScheduleConfig

if TYPE_CHECKING:
    import torch

STAGES = ("joint", "decoder", "prior")  # `TrainingConfig.stages` has them in their order
STARTS = ("closed_form", "random")
_CAREFUL_RATE = 1e-5  # of codewords that are good already; their entries are about 0.1
_SYNTHESIS_FROM = (
    0.75  # of the decoder's stage: what a patch is worth to a decoder that will change is soon forgotten
)
_FLOOR_SHARE = 0.02  # of the peak learning rate, at the end of every stage


@config_dataclass
class MixConfig:
    """Shares of a batch by how its patches are filtered; what is left of 1 stays unfiltered."""

    gain: float = option(
        0.55,
        at_least=0,
        help="kept by what their codewords gain, with noise, keep rate uniform over 0 to 1",
        unit="share of batch",
    )
    entropy: float = option(
        0.0,
        at_least=0,
        help="kept by conditional entropy, keep rate uniform over 0 to 1",
        unit="share of batch",
    )
    drop_cost: float = option(
        0.0,
        at_least=0,
        help="kept by the drop-cost head, keep rate uniform over 0 to 1",
        unit="share of batch",
    )
    synthesis: float = option(
        0.0,
        at_least=0,
        help="kept by analysis by synthesis, keep rate uniform over 0 to 1",
        unit="share of batch",
    )
    random: float = option(
        0.06, at_least=0, help="kept by chance, keep rate uniform over 0 to 1; what the drop-cost head learns from",
        unit="share of batch",
    )  # fmt: skip
    prefix: float = option(
        0.0,
        at_least=0,
        help="kept by place, the first ones in raster order, keep rate uniform over 0 to 1 (nested dropout)",
        unit="share of batch",
    )
    globals_only: float = option(
        0.06,
        at_least=0,
        help="without patches, so that globals carry what patches share",
        unit="share of batch",
    )

    def __post_init__(self) -> None:
        shares = {field.name: getattr(self, field.name) for field in fields(self)}
        if sum(shares.values()) > 1 + 1e-9:
            shown = ", ".join(f"{name}={share}" for name, share in shares.items())
            raise ValueError(f"{shown}: expected at most 1 together")


NORMS = ("group", "spectral", "none")


@config_dataclass
class DiscriminatorConfig:
    """Defaults for images of 256 pixels; a depth of 2 suits 64 to 128."""

    width: int = option(64, at_least=8, help="channels of the first layer, a multiple of 8", unit="channels")
    depth: int = option(
        3,
        at_least=1,
        help="layers of stride 2; a logit sees 34, 70 or 142 pixels at depth 2, 3 or 4",
        unit="layers",
    )
    norm: str = option(
        "group",
        choices=NORMS,
        help="group: group norm after every layer but the first and the last; spectral: of all weights; none",
    )

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ValueError(f"width={self.width}: expected a multiple of 8")

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what one logit sees: 7 for the two last layers, and twice that and 2 for each before."""
        return 9 * 2**self.depth - 2

    @property
    def smallest_image(self) -> int:
        """Side in pixels that still gives a logit."""
        return 3 * 2**self.depth


FEATURES = ("efficientnet_lite0", "lpips", "none")


@config_dataclass
class LossConfig:
    l1: float = option(0.0, at_least=0, help="weight of the mean absolute error of pixels in [0, 1]")
    l2: float = option(0.0, at_least=0, help="weight of the mean squared error of pixels in [0, 1]")
    log_l2: float = option(
        1.0,
        at_least=0,
        help="weight of the logarithm of each image's mean squared error, so that images count alike whatever share of "
        "their patches is kept",
    )
    perceptual: float = option(0.1, at_least=0, help="weight of the distance of features")
    perceptual_features: str = option(
        "efficientnet_lite0",
        choices=FEATURES,
        help="whose features: EfficientNet-Lite0's, or the network of the lpips package",
    )
    adversarial: float = option(
        0.0,
        at_least=0,
        help="weight of the PatchGAN discriminator's verdict, on top of the adaptive one (LlamaGen: 0.5)",
    )
    adversarial_start_step: int = option(
        20_000, at_least=0, help="from when on the discriminator is trained and heard", unit="steps"
    )
    discriminator: DiscriminatorConfig = section(
        DiscriminatorConfig, help="the discriminator, where adversarial is above 0"
    )
    commitment: float = option(0.25, at_least=0, help="weight of the commitment of vq latents to their codes")
    evenness: float = option(
        0.02,
        at_least=0,
        help="weight of how unevenly fsq latents use their grid, which keeps codes from falling out of use",
    )
    rate: float = option(
        0.0,
        at_least=0,
        help="weight λ of the nats of a code, mean of the globals plus mean of the patches, in the joint stage: the "
        "encoder is asked for codes that are cheap to predict, and to predict others from (fsq only)",
    )

    def __post_init__(self) -> None:
        if self.l1 + self.l2 + self.log_l2 == 0:
            raise ValueError(
                f"l1={self.l1}, l2={self.l2}, log_l2={self.log_l2}: expected one of them above 0"
            )


PATCHED_SHARE = 4  # one crop in so many is looked at by its patches, all of them by their thumbnails


@config_dataclass
class DecoderMixConfig(MixConfig):
    """The same kinds for the decoder's stage, where codes are final and synthesis is worth its price."""

    synthesis: float = option(
        0.06,
        at_least=0,
        help="kept by analysis by synthesis, keep rate uniform over 0 to 1, in the last quarter of the stage (before "
        "it by what their codewords gain); the drop-cost head learns from it, and it makes a step half as long again",
        unit="share of batch",
    )


@config_dataclass
class TrainingConfig:
    start: str = option(
        "closed_form",
        choices=STARTS,
        help="closed_form: linear maps and codewords are computed from images before the first step (vq codebooks); "
        "random: everything is learned, by the joint stage",
    )
    start_from: str | None = option(
        None,
        help=f"a tokenizer to go on from in place of `start`, on any URL, or {PACKAGED!r}: its weights are taken, but "
        "for an entropy model of another size, which starts anew; null: none",
        is_url=True,
    )
    start_crops: int = option(
        8_000, at_least=1, help="images that the closed form sees", unit="crops, over all workers"
    )
    decoder_steps: int = option(
        40_000,
        at_least=0,
        help="length of the decoder's stage, on codes that do not change: the last one after a random start, else the "
        "first one",
        unit="steps",
    )
    joint_steps: int = option(
        20_000, at_least=0, help="length of the joint stage: encoder, codewords and decoder", unit="steps"
    )
    prior_steps: int = option(15_000, at_least=0, help="length of the entropy model's stage", unit="steps")
    batch_size: int = option(256, at_least=1, help="images a step", unit="images, over all workers")
    microbatch_size: int | None = option(
        None,
        at_least=1,
        help="images of a forward and backward pass, what memory allows; null: the worker's share of a batch",
        unit="images per worker",
    )
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the model, weights stay fp32; auto: bf16 on GPUs, fp32 on CPUs",
    )
    compile: str = option(
        "auto", choices=("auto", "yes", "no"), help="torch.compile of the blocks; auto: on GPUs"
    )
    learning_rate: float = option(3e-4, above=0, help="peak of the joint stage", unit="per step")
    codes_learning_rate: float | None = option(
        None,
        above=0,
        help="peak of codewords and linear maps in the joint stage; null: 1e-5 after a closed form or with "
        "`start_from`, else learning_rate",
        unit="per step",
    )
    prior_learning_rate: float = option(
        3e-4, above=0, help="peak of the entropy model, in both of its stages", unit="per step"
    )
    decoder_learning_rate: float = option(3e-4, above=0, help="peak of the decoder's stage", unit="per step")
    matrix_ratio: float = option(
        5.0,
        above=0,
        help="learning rate of the matrices inside blocks, which Muon trains, over that of the rest, which is AdamW's",
    )
    warmup_steps: int = option(
        1_000, at_least=0, help="linear warm-up at the start of every stage", unit="steps"
    )
    weight_decay: float = option(
        0.05, help="AdamW and Muon, matrices only", unit="per step and learning rate"
    )
    clip_norm: float = option(
        1.0,
        above=0,
        help="gradient norm: encoder with decoder, drop-cost head, entropy model and discriminator, each by itself",
        unit="L2 norm",
    )
    ema_decay: float = option(
        0.999, at_least=0, below=1,
        help="average of weights over steps, with which every stage ends; 0: none", unit="per step",
    )  # fmt: skip
    hide_globals: float = option(
        0.15,
        at_least=0,
        below=1,
        help="images whose globals the entropy model does not see",
        unit="share of batch",
    )
    mix: MixConfig = section(MixConfig, help="how the samples of a batch are filtered in the joint stage")
    decoder_mix: DecoderMixConfig = section(
        DecoderMixConfig, help="how they are filtered in the decoder's stage"
    )
    loss: LossConfig = section(LossConfig, help="weights of the losses")

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError("joint_steps=0, prior_steps=0, decoder_steps=0: expected one of them above 0")
        last = self.last_decoder_step
        if self.loss.adversarial and self.loss.adversarial_start_step >= last:
            raise ValueError(
                f"loss.adversarial_start_step={self.loss.adversarial_start_step}: expected less than {last}, the last "
                "step that trains a decoder"
            )
        if self.mix.synthesis:
            raise ValueError(
                f"mix.synthesis={self.mix.synthesis}: expected 0; codes still change there, use decoder_mix.synthesis"
            )

    @property
    def starts_in_closed_form(self) -> bool:
        return self.start_from is None and self.start == "closed_form"

    @property
    def starts_with_codes(self) -> bool:
        """Whether there are codewords before the first step."""
        return self.start_from is not None or self.start == "closed_form"

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order in which they are trained: where there are codes, a decoder can learn from them at once."""
        if self.starts_with_codes:
            return ("decoder", "joint", "prior")
        return ("joint", "prior", "decoder")

    @property
    def codes_peak(self) -> float:
        if self.codes_learning_rate is not None:
            return self.codes_learning_rate
        return _CAREFUL_RATE if self.starts_with_codes else self.learning_rate

    @property
    def last_decoder_step(self) -> int:
        if self.starts_with_codes:
            return self.num_steps - self.prior_steps
        return self.num_steps if self.decoder_steps else self.joint_steps

    @property
    def num_steps(self) -> int:
        return self.joint_steps + self.prior_steps + self.decoder_steps

    def mix_at(self, stage: str, *, done: int, length: int) -> MixConfig | None:
        """The mix of the step after `done` of the `length` steps of a stage; None where no decoder is trained."""
        if stage == "prior":
            return None
        if stage == "joint":
            return self.mix
        mix = self.decoder_mix
        if done < self.first_synthesis_step(length):
            return replace(mix, gain=mix.gain + mix.synthesis, synthesis=0.0)
        return mix

    def first_synthesis_step(self, length: int) -> int:
        """Of the `length` steps of the decoder's stage, the first one in which patches are kept by synthesis, if the
        mix has such. The drop-cost head is trained from there on."""
        return math.floor(_SYNTHESIS_FROM * length) if self.decoder_mix.synthesis else 0

    @property
    def is_prior_in_joint(self) -> bool:
        """Whether anything in the joint stage needs the entropy model; where not, it is trained in its own stage."""
        return self.loss.rate > 0 or self.mix.entropy > 0

    def schedule(self, peak: float) -> ScheduleConfig:
        return ScheduleConfig(peak=peak, warmup_steps=self.warmup_steps, floor_share=_FLOOR_SHARE)

    def precision_on(self, device: torch.device) -> str:
        """ "fp32" or "bf16"."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.type == "cuda" else "fp32"

    def is_compiled_on(self, device: torch.device) -> bool:
        return self.compile == "yes" or (self.compile == "auto" and device.type == "cuda")
