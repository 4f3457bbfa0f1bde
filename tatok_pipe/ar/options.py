"""The options of a generator, of its training and of drawing from it, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.training.schedule import ScheduleConfig

if TYPE_CHECKING:
    import torch


@config_dataclass
class GeneratorConfig:
    """Sizes as LlamaGen's (arXiv 2406.06525); the default is its B."""

    width: int = option(768, at_least=1, help="width of the residual stream", unit="channels")
    depth: int = option(12, at_least=1, help="number of blocks", unit="blocks")
    heads: int = option(
        12, at_least=1, help="attention heads; width / heads: a multiple of 8, at most 256", unit="heads"
    )
    condition: str = option(
        "class", choices=("none", "class", "embedding"), help="what images are generated from"
    )
    num_classes: int = option(
        0,
        at_least=0,
        help="where the condition is a class; 0: as many as the dataset has names of, 1000 where it has none",
        unit="classes",
    )
    embedding_dim: int = option(
        0, help="size of the precomputed vectors, of about unit length, where the condition is one", unit="channels"
    )  # fmt: skip
    num_budgets: int = option(
        0,
        at_least=0,
        help="buckets of the number of patch tokens, of equal width: images are told theirs in training, so that cheap "
        "or rich ones can be asked for; 0: they are not",
        unit="buckets",
    )
    dropout: float = option(
        0.0,
        at_least=0,
        below=1,
        help="of embeddings and residual branches; 0.1 in LlamaGen",
        unit="share of channels",
    )

    def __post_init__(self) -> None:
        head_dim = self.width / self.heads
        if head_dim % 8 or head_dim > 256:
            raise ValueError(
                f"width={self.width}, heads={self.heads}: expected width / heads to be a multiple of 8 and at most 256"
            )
        if self.condition == "embedding" and self.embedding_dim < 1:
            raise ValueError(
                f"embedding_dim={self.embedding_dim}: expected the size of the vectors with condition=embedding"
            )


@config_dataclass
class OptimizerConfig:
    beta1: float = option(0.9, at_least=0, below=1, help="AdamW, decay of the mean gradient", unit="per step")
    beta2: float = option(
        0.95, at_least=0, below=1, help="AdamW, decay of the mean squared gradient", unit="per step"
    )
    weight_decay: float = option(
        0.05, at_least=0, help="AdamW, matrices only", unit="per step and learning rate"
    )
    clip_norm: float = option(
        1.0, above=0, help="gradients are scaled down to this", unit="L2 norm of all weights"
    )
    z_loss: float = option(
        0.0,
        at_least=0,
        help="weight of the squared log-partition sums (PaLM: 1e-4), which keeps logits small",
        unit="per code",
    )
    ema_decay: float = option(
        0.0, at_least=0, below=1,
        help="average of weights over steps, which is what is validated and exported; 0: none (LlamaGen: 0.9999)",
        unit="per step",
    )  # fmt: skip


@config_dataclass
class TrainingConfig:
    steps: int | None = option(
        None, at_least=1, help="length of the training; null: by `epochs`", unit="steps"
    )
    epochs: float = option(
        50.0, above=0, help="length of the training where `steps` is null", unit="passes over the dataset"
    )
    batch_tokens: int = option(
        262_144,
        at_least=1,
        help="a step, rounded to whole rows; the same on any number of workers, which share its rows",
        unit="elements of packed rows, over all workers",
    )
    microbatch_rows: int = option(
        8, at_least=1, help="rows of a forward and backward pass; what memory allows", unit="rows per worker"
    )
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the model, weights stay fp32; auto: bf16 on GPUs, fp32 on CPUs",
    )
    shard: str = option(
        "auto",
        choices=("auto", "yes", "no"),
        help="FSDP2: weights, gradients and optimizer are split over the workers; auto: on several GPUs where a model "
        "has over 500 M weights; no: each worker has all of them",
    )
    compile: str = option(
        "auto", choices=("auto", "yes", "no"), help="torch.compile of the blocks; auto: on GPUs"
    )
    checkpoint_activations: bool = option(
        False, help="compute blocks a second time in the backward pass: less memory, a third more time"
    )
    schedule: ScheduleConfig = section(ScheduleConfig, help="learning rate")
    optimizer: OptimizerConfig = section(OptimizerConfig, help="AdamW and what goes with it")

    def precision_on(self, device: torch.device) -> str:
        """ "fp32" or "bf16"."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.type == "cuda" else "fp32"


@config_dataclass
class DrawConfig:
    """How one part of an image is drawn. First guidance, then temperature, then top-k, then top-p."""

    temperature: float = option(
        1.0, at_least=0, help="logits are divided by it; 0: the likeliest outcome, always"
    )
    top_k: int = option(
        0, at_least=0, help="only from so many of the likeliest outcomes; 0: all", unit="outcomes"
    )
    top_p: float = option(
        1.0,
        above=0,
        at_most=1,
        help="only from the likeliest outcomes that together have this probability",
        unit="probability",
    )
    guidance: float = option(
        1.0,
        at_least=0,
        help="classifier-free guidance: logits without condition + guidance × their difference to those with it; "
        "1: none, and half the work",
    )


@config_dataclass
class SamplingConfig:
    codes: DrawConfig = section(DrawConfig, help="how codes are drawn, of globals and of patches")
    positions: DrawConfig = section(DrawConfig, help="how the place of the next patch is drawn, or the end")
    guidance_schedule: str = option(
        "constant",
        choices=("constant", "cosine"),
        help="guidance is the same for the whole image, or rises along half a cosine from none at its first token to "
        "all of it at its last place",
    )
    max_patches: int | None = option(
        None,
        at_least=0,
        help="an image ends at so many patch tokens; null: no limit",
        unit="patches per image",
    )

    @property
    def is_guided(self) -> bool:
        return self.codes.guidance != 1 or self.positions.guidance != 1
