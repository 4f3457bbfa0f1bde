"""The options of a tokenizer and of its filter, without torch."""

from __future__ import annotations

import math

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.tokenizer.rules import RULES
from tatok_pipe.tokenizer.scores.table import SCORES


@config_dataclass
class QuantizerConfig:
    kind: str = option(
        "vq",
        choices=("vq", "fsq"),
        help="vq: learned codewords, which have a closed-form start; fsq: fixed grid, cannot collapse",
    )
    levels: list[int] = option(
        [8, 8, 8, 8, 4],
        at_least=2,
        help="levels of each FSQ dimension; their product is the codebook size",
        unit="levels",
    )
    codebook_size: int = option(16384, at_least=2, help="codebook size of vq", unit="codes")
    code_dim: int = option(64, at_least=1, help="dimension of a vq code vector", unit="channels")
    ema_decay: float = option(
        0.99,
        above=0,
        below=1,
        help="decay of the moving average of how often a vq code is used",
        unit="per forward pass",
    )
    revive_below: float = option(
        0.0,
        help="a vq code used less than this often per forward pass is moved onto a recent latent; 0.02 where training "
        "starts at random, 0 after a closed form, which leaves no code without use",
        unit="uses",
    )

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels=[]: expected at least one dimension")

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels) if self.kind == "fsq" else self.codebook_size

    @property
    def dim(self) -> int:
        return len(self.levels) if self.kind == "fsq" else self.code_dim


@config_dataclass
class GlobalQuantizerConfig(QuantizerConfig):
    """The same of the globals, each of which has a codebook of its own and few dimensions."""

    codebook_size: int = option(1024, at_least=2, help="codebook size of vq, of each global", unit="codes")
    code_dim: int = option(4, at_least=1, help="dimension of a vq code vector", unit="channels")


MAX_THUMBNAIL_SIDE = 16


@config_dataclass
class StackConfig:
    """One transformer."""

    width: int = option(768, at_least=1, help="width of the residual stream", unit="channels")
    depth: int = option(12, at_least=1, help="number of blocks", unit="blocks")
    heads: int = option(
        12, at_least=1, help="attention heads; width / heads must be a multiple of 4", unit="heads"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width={self.width}, heads={self.heads}: expected width / heads to be a multiple of 4"
            )


@config_dataclass
class GridStackConfig:
    """One stack of convolutions, MLPs and attention over globals and the grid of patches."""

    width: int = option(768, at_least=1, help="width of the residual stream", unit="channels")
    depth: int = option(12, at_least=0, help="number of blocks", unit="blocks")
    heads: int = option(12, at_least=1, help="attention heads, which divide the width", unit="heads")
    attend_every: int = option(
        2, at_least=1, help="of so many blocks in a row, the middle one has attention", unit="blocks"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width}, heads={self.heads}: expected heads that divide the width")


@config_dataclass
class TaTokConfig:
    image_size: int = option(256, at_least=1, help="side of the square images", unit="pixels")
    patch_size: int = option(16, at_least=1, help="side of a patch", unit="pixels")
    num_globals: int = option(32, at_least=0, help="global tokens an image, K", unit="tokens")
    search_passes: int = option(
        1,
        at_least=0,
        help="passes of analysis by synthesis over the codes of the patches of an image; 0: the nearest codewords",
        unit="passes",
    )
    encoder: GridStackConfig = section(
        GridStackConfig,
        help="network in which patches and globals read each other before they become codes; depth 0: linear alone",
    )
    decoder: GridStackConfig = section(GridStackConfig, help="network from tokens to pixels")
    prior: StackConfig = section(StackConfig, help="entropy model: causal transformer over the codes")
    global_codebook: GlobalQuantizerConfig = section(
        GlobalQuantizerConfig, help="quantizer of the global tokens"
    )
    patch_codebook: QuantizerConfig = section(QuantizerConfig, help="quantizer of the patch tokens")

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size}, patch_size={self.patch_size}: expected a multiple of the patch size"
            )
        if self.decoder.depth < 1:
            raise ValueError(f"decoder.depth={self.decoder.depth}: expected at least 1")
        if self.num_patches > 65_536:
            raise ValueError(
                f"{self.num_patches} patches: positions are stored in 16 bits, so at most 65,536"
            )

        if self.search_passes and self.patch_codebook.kind != "vq":
            raise ValueError(
                f"search_passes={self.search_passes}: expected 0 with a patch codebook of kind "
                f"{self.patch_codebook.kind} (vq can be searched)"
            )
        values = 3 * self.patch_size**2
        if self.patch_codebook.dim > values:
            raise ValueError(
                f"patch_codebook.code_dim={self.patch_codebook.dim}: expected at most the {values} values of a patch "
                f"of {self.patch_size} pixels"
            )
        side = min(self.grid_side, MAX_THUMBNAIL_SIDE)
        if self.num_globals * self.global_codebook.dim > 3 * side**2:
            raise ValueError(
                f"num_globals={self.num_globals}, global_codebook.code_dim={self.global_codebook.dim}: expected at "
                f"most {3 * side**2} dimensions in all, the values of a thumbnail of {side} pixels"
            )

    @property
    def grid_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_side**2


_UNITS_HELP = "costs being " + ", or ".join(
    f"{unit} with {' and '.join(score.name for score in SCORES.values() if score.unit == unit)}"
    for unit in dict.fromkeys(score.unit for score in SCORES.values())
)


@config_dataclass
class DTFConfig:
    """What a user asks for. `resolve` turns it into a `Filter` with the help of a checkpoint's ladder."""

    rule: str = option(
        "threshold",
        choices=tuple(RULES),
        help="; ".join(f"{rule.name}: {rule.help}" for rule in RULES.values()),
    )
    score: str = option(
        "gain",
        choices=tuple(SCORES),
        help=f"what losing a patch costs; {'; '.join(f'{score.name}: {score.help}' for score in SCORES.values())}",
    )
    target_tokens: float | None = option(
        None,
        help="mean tokens an image (globals included) to aim at; null with no value: half of the patches",
        unit="tokens, mean over the calibration images",
    )
    percentile: float | None = option(
        None,
        help="with threshold: tau lies above the cost of this share of the patches of the calibration images",
        unit="percent",
    )
    value: float | None = option(
        None,
        help="the rule's number ("
        + "; ".join(f"{rule.name}: {rule.value_help}" for rule in RULES.values() if rule.value_help)
        + f"), {_UNITS_HELP}; null: taken from the checkpoint's calibration",
        unit="by rule and score",
    )
    min_patches: int = option(
        1, at_least=0, help="patches that an image keeps whatever the rule says", unit="patches"
    )

    def __post_init__(self) -> None:
        aims = {name: getattr(self, name) for name in ("value", "target_tokens", "percentile")}
        given = [f"{name}={aim}" for name, aim in aims.items() if aim is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        if given and self.rule == "none":
            raise ValueError(f"{given[0]}, rule=none: keeps all patches; give another rule, or leave it out")
        if self.percentile is not None and self.rule != "threshold":
            raise ValueError(
                f"percentile={self.percentile}, rule={self.rule}: expected rule=threshold; give target_tokens or value"
            )
        if self.value is not None:
            RULES[self.rule].check(self.value)


PACKAGED = "packaged"  # the checkpoint name of the tokenizer that comes with the package


@config_dataclass
class CheckpointConfig:
    checkpoint: str = option(
        PACKAGED,
        help=f"output.url of train_tokenizer, or its tokenizer/, on any URL, or {PACKAGED!r}",
        is_url=True,
    )
