"""The options of a generator, of its training and of drawing from it, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tatok_pipe.config.options import check_choices, option, section
from tatok_pipe.training.schedule import ScheduleConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes as LlamaGen's (arXiv 2406.06525); the default is its B."""

    width: int = option(768, help="width of the residual stream", unit="channels")
    depth: int = option(12, help="number of blocks", unit="blocks")
    heads: int = option(12, help="attention heads; width / heads: a multiple of 8, at most 256", unit="heads")
    condition: str = option(
        "class", choices=("none", "class", "embedding"), help="what images are generated from"
    )
    num_classes: int = option(
        0,
        help="where the condition is a class; 0: as many as the dataset has names of, 1000 where it has none",
        unit="classes",
    )
    embedding_dim: int = option(
        0, help="size of the precomputed vectors, of about unit length, where the condition is one", unit="channels"
    )  # fmt: skip
    num_budgets: int = option(
        0,
        help="buckets of the number of patch tokens, of equal width: images are told theirs in training, so that cheap "
        "or rich ones can be asked for; 0: they are not",
        unit="buckets",
    )
    dropout: float = option(
        0.0, help="of embeddings and residual branches; 0.1 in LlamaGen", unit="share of channels"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        head_dim = self.width / self.heads if self.heads > 0 else 0
        if min(self.width, self.depth) < 1 or head_dim % 8 or not 8 <= head_dim <= 256:
            raise ValueError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}: expected width / heads to be a multiple "
                "of 8 and at most 256, and all three at least 1"
            )
        if self.num_classes < 0:
            raise ValueError(f"num_classes={self.num_classes}: expected 0 or more")
        if self.condition == "embedding" and self.embedding_dim < 1:
            raise ValueError(
                f"embedding_dim={self.embedding_dim}: expected the size of the vectors with condition=embedding"
            )
        if self.num_budgets < 0:
            raise ValueError(f"num_budgets={self.num_budgets}: expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected 0 or more, and below 1")


@dataclass(frozen=True)
class OptimizerConfig:
    beta1: float = option(0.9, help="AdamW, decay of the mean gradient", unit="per step")
    beta2: float = option(0.95, help="AdamW, decay of the mean squared gradient", unit="per step")
    weight_decay: float = option(0.05, help="AdamW, matrices only", unit="per step and learning rate")
    clip_norm: float = option(1.0, help="gradients are scaled down to this", unit="L2 norm of all weights")
    z_loss: float = option(
        0.0,
        help="weight of the squared log-partition sums (PaLM: 1e-4), which keeps logits small",
        unit="per code",
    )
    ema_decay: float = option(
        0.0, help="average of weights over steps, which is what is validated and exported; 0: none (LlamaGen: 0.9999)",
        unit="per step",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more, and below 1")
        if self.clip_norm <= 0 or self.weight_decay < 0 or self.z_loss < 0:
            raise ValueError(
                f"clip_norm={self.clip_norm}, weight_decay={self.weight_decay}, z_loss={self.z_loss}: expected a norm "
                "above 0, and weights of 0 or more"
            )


@dataclass(frozen=True)
class TrainingConfig:
    steps: int | None = option(None, help="length of the training; null: by `epochs`", unit="steps")
    epochs: float = option(
        50.0, help="length of the training where `steps` is null", unit="passes over the dataset"
    )
    batch_tokens: int = option(
        262_144,
        help="a step, rounded to whole rows; the same on any number of workers, which share its rows",
        unit="elements of packed rows, over all workers",
    )
    microbatch_rows: int = option(
        8, help="rows of a forward and backward pass; what memory allows", unit="rows per worker"
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

    def __post_init__(self) -> None:
        check_choices(self)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1, or null")
        if self.epochs <= 0:
            raise ValueError(f"epochs={self.epochs}: expected more than 0")
        for name in ("batch_tokens", "microbatch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    def precision_on(self, device: torch.device) -> str:
        """ "fp32" or "bf16"."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device.type == "cuda" else "fp32"


@dataclass(frozen=True)
class DrawConfig:
    """How one part of an image is drawn. First guidance, then temperature, then top-k, then top-p."""

    temperature: float = option(1.0, help="logits are divided by it; 0: the likeliest outcome, always")
    top_k: int = option(0, help="only from so many of the likeliest outcomes; 0: all", unit="outcomes")
    top_p: float = option(
        1.0, help="only from the likeliest outcomes that together have this probability", unit="probability"
    )
    guidance: float = option(
        1.0,
        help="classifier-free guidance: logits without condition + guidance × their difference to those with it; "
        "1: none, and half the work",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected more than 0, and at most 1")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance={self.guidance}: expected 0 or more")


@dataclass(frozen=True)
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
        None, help="an image ends at so many patch tokens; null: no limit", unit="patches per image"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_patches is not None and self.max_patches < 0:
            raise ValueError(f"max_patches={self.max_patches}: expected 0 or more, or null")

    @property
    def is_guided(self) -> bool:
        return self.codes.guidance != 1 or self.positions.guidance != 1
