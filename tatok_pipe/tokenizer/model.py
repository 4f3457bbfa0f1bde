"""TaTok, the adaptive discrete tokenizer (arXiv 2605.16384): encoder, quantizers, entropy model, decoder.

Letters: B images, H = W image size in pixels, p patch size, N = (H/p)² patches in raster order, K globals,
V_g and V_p codebook sizes, D width, C code dimension.

Images are float (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.nn.blocks import Transformer
from tatok_pipe.nn.rotary import grid_coordinates, rotary_table
from tatok_pipe.options import option, section
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.prior import Prior, PriorOutput
from tatok_pipe.tokenizer.quantizer import Quantized, QuantizerConfig, build_quantizer

# Shares of the patches that are kept after each round of synthesis but the last, which takes the rest.
SYNTHESIS_SHARES = (0.1, 0.25, 0.5)
_HEAD_WIDTH = 256


@dataclass(frozen=True)
class StackConfig:
    """One transformer."""

    width: int = option(768, help="width of the residual stream", unit="channels")
    depth: int = option(12, help="number of blocks", unit="blocks")
    heads: int = option(12, help="attention heads; width / heads must be a multiple of 4", unit="heads")

    def __post_init__(self) -> None:
        if (
            min(self.width, self.depth, self.heads) < 1
            or self.width % self.heads
            or self.width // self.heads % 4
        ):
            raise ValueError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}: expected width / heads to be a "
                "multiple of 4, and all three at least 1"
            )


@dataclass(frozen=True)
class TaTokConfig:
    image_size: int = option(256, help="side of the square images", unit="pixels")
    patch_size: int = option(16, help="side of a patch", unit="pixels")
    num_globals: int = option(32, help="global tokens an image, K", unit="tokens")
    encoder: StackConfig = section(
        StackConfig, help="bidirectional transformer over patches and global queries"
    )
    decoder: StackConfig = section(StackConfig, help="bidirectional transformer from tokens to pixels")
    prior: StackConfig = section(StackConfig, help="entropy model: causal transformer over the codes")
    global_codebook: QuantizerConfig = section(QuantizerConfig, help="quantizer of the global tokens")
    patch_codebook: QuantizerConfig = section(QuantizerConfig, help="quantizer of the patch tokens")

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size}, patch_size={self.patch_size}: expected a multiple of the patch size"
            )
        if self.num_globals < 0:
            raise ValueError(f"num_globals={self.num_globals}: expected 0 or more")
        if self.num_patches > 65_536:
            raise ValueError(
                f"{self.num_patches} patches: positions are stored in 16 bits, so at most 65,536"
            )

    @property
    def grid_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_side**2


@dataclass(frozen=True)
class Encoded:
    """What the encoder and the quantizers make of a batch of images."""

    globals: Quantized  # vectors (B, K, C), codes (B, K)
    patches: Quantized  # vectors (B, N, C), codes (B, N)
    features: Tensor  # (B, N, D), of the patches, before quantization

    def rows(self, rows: Tensor) -> Encoded:
        """Some of the images, by index or mask (B,). A loss of the whole batch is no part of it."""

        def some(quantized: Quantized) -> Quantized:
            return Quantized(
                quantized.vectors[rows], quantized.codes[rows], quantized.regularizer.new_zeros(())
            )

        return Encoded(some(self.globals), some(self.patches), self.features[rows])


@dataclass(frozen=True)
class Tokens:
    """What tokenizing a batch gives. All on the model's device."""

    global_codes: Tensor  # (B, K) int64
    patch_codes: Tensor  # (B, N) int64, all of them
    cost: Tensor  # (B, N) float32, what losing each patch costs by the filter's score
    keep: Tensor  # (B, N) bool
    patch_entropy: Tensor  # (B, N) float32, h_i in nats
    mutual_information: Tensor | None  # (B,) float32, nats


class DropCostHead(nn.Module):
    """Features (…, D) of a patch to the logarithm of what masking it costs, (…) float32, whatever autocast says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, _HEAD_WIDTH)
        self.out = nn.Linear(_HEAD_WIDTH, 1)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, math.log(1e-3))  # what a patch costs at the start of most trainings

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.out(F.gelu(self.hidden(features.float())))[..., 0]


class TaTok(nn.Module):
    encoder_rotary: Tensor
    decoder_rotary: Tensor

    def __init__(self, config: TaTokConfig):
        super().__init__()
        self.config = config
        patch_values = 3 * config.patch_size**2
        coordinates = grid_coordinates(config.grid_side)
        centre = torch.full((config.num_globals, 2), (config.grid_side - 1) / 2)
        coordinates = torch.cat([centre, coordinates])  # globals first, as in every sequence here

        def rotary(stack: StackConfig) -> Tensor:
            return rotary_table(coordinates, head_dim=stack.width // stack.heads)

        def bidirectional(stack: StackConfig) -> Transformer:
            return Transformer(width=stack.width, depth=stack.depth, num_heads=stack.heads, causal=False)

        def positions(stack: StackConfig) -> nn.Parameter:
            return nn.Parameter(torch.randn(config.num_globals + config.num_patches, stack.width) * 0.02)

        encoder, decoder, prior = config.encoder, config.decoder, config.prior
        self.global_quantizer = build_quantizer(config.global_codebook)
        self.patch_quantizer = build_quantizer(config.patch_codebook)

        self.patch_embed = nn.Linear(patch_values, encoder.width)
        self.encoder_positions = positions(encoder)  # a global's position is its query
        self.encoder = bidirectional(encoder)
        self.register_buffer("encoder_rotary", rotary(encoder), persistent=False)
        self.to_global = nn.Linear(encoder.width, self.global_quantizer.dim)
        self.to_patch = nn.Linear(encoder.width, self.patch_quantizer.dim)
        self.drop_cost_head = DropCostHead(encoder.width)

        self.from_global = nn.Linear(self.global_quantizer.dim, decoder.width)
        self.from_patch = nn.Linear(self.patch_quantizer.dim, decoder.width)
        self.dropped = nn.Parameter(torch.randn(decoder.width) * 0.02)
        self.decoder_positions = positions(decoder)
        self.decoder = bidirectional(decoder)
        self.register_buffer("decoder_rotary", rotary(decoder), persistent=False)
        self.to_pixels = nn.Linear(decoder.width, patch_values)

        self.prior = Prior(
            width=prior.width,
            depth=prior.depth,
            num_heads=prior.heads,
            num_globals=config.num_globals,
            grid_side=config.grid_side,
            global_quantizer=self.global_quantizer,
            patch_quantizer=self.patch_quantizer,
        )

    def encode(self, images: Tensor) -> Encoded:
        """Images (B, 3, H, W) to quantized globals and patches; gradients pass through."""
        patches = self.patch_embed((self.patchify(images) * 2).sub_(1))  # (B, N, D)
        queries = self.encoder_positions[: self.config.num_globals].expand(len(images), -1, -1)
        patches = patches + self.encoder_positions[self.config.num_globals :]
        x = self.encoder(torch.cat([queries, patches], dim=1), self.encoder_rotary)  # (B, K + N, D)
        global_features, patch_features = x.split([self.config.num_globals, self.config.num_patches], dim=1)
        return Encoded(
            self.global_quantizer.quantize(self.to_global(global_features)),
            self.patch_quantizer.quantize(self.to_patch(patch_features)),
            patch_features,
        )

    def log_drop_cost(self, encoded: Encoded) -> Tensor:
        """The head's prediction (B, N) float32: logarithm of the mean squared error, pixels in [0, 1], that a patch
        gains when it is masked. No gradient reaches the encoder."""
        return self.drop_cost_head(encoded.features.detach())

    def predict(
        self, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor | None = None
    ) -> PriorOutput:
        """The entropy model's teacher-forced pass over codes (B, K) and (B, N)."""
        return self.prior(
            self.global_quantizer.codes_to_vectors(global_codes),
            self.patch_quantizer.codes_to_vectors(patch_codes),
            without_globals=without_globals,
        )

    @torch.no_grad()
    def patch_entropy(
        self, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor | None = None
    ) -> Tensor:
        """h_i of codes (B, K) and (B, N), (B, N) float32 in nats: the entropies of the distributions that `predict`
        has logits of."""
        return self.prior.patch_entropy(
            self.global_quantizer.codes_to_vectors(global_codes),
            self.patch_quantizer.codes_to_vectors(patch_codes),
            without_globals=without_globals,
        )

    def reconstruct(self, global_vectors: Tensor, patch_vectors: Tensor, keep: Tensor) -> Tensor:
        """Code vectors (B, K, C), (B, N, C) and keep mask (B, N) to images (B, 3, H, W), not clamped."""
        patches = self.from_patch(patch_vectors)
        patches = torch.where(keep[:, :, None], patches, self.dropped.to(patches.dtype))
        x = torch.cat([self.from_global(global_vectors), patches], dim=1) + self.decoder_positions
        x = self.decoder(x, self.decoder_rotary)[:, self.config.num_globals :]  # (B, N, D)
        return (self.unpatchify(self.to_pixels(x)) + 1) / 2

    @torch.no_grad()
    def decode(self, global_codes: Tensor, patch_codes: Tensor, keep: Tensor) -> Tensor:
        """Codes (B, K), (B, N) int64 and keep mask (B, N) bool to images (B, 3, H, W) float32 in [0, 1].

        `patch_codes` may hold any valid code where `keep` is False: it is not read.
        """
        return (
            self.reconstruct(
                self.global_quantizer.codes_to_vectors(global_codes),
                self.patch_quantizer.codes_to_vectors(patch_codes),
                keep,
            )
            .float()
            .clamp(0, 1)
        )

    @torch.no_grad()
    def tokenize(self, images: Tensor, filter: Filter, *, with_mutual_information: bool = False) -> Tokens:
        """Encode, measure entropies and filter a batch of images (B, 3, H, W).

        `with_mutual_information` adds a second pass of the entropy model, without globals:
        Î(G;P) = sum of H(z_i | z_<i) - H(z_i | G, z_<i).
        """
        encoded = self.encode(images)
        global_codes, patch_codes = encoded.globals.codes, encoded.patches.codes
        entropy = self.patch_entropy(global_codes, patch_codes)  # (B, N)
        cost = self.cost(filter.score, images, encoded, entropy=entropy)
        mutual_information = None
        if with_mutual_information:
            hidden = torch.ones(len(images), dtype=torch.bool, device=images.device)
            alone = self.patch_entropy(global_codes, patch_codes, without_globals=hidden)
            mutual_information = (alone - entropy).sum(dim=1)
        return Tokens(global_codes, patch_codes, cost, keep_mask(cost, filter), entropy, mutual_information)

    @torch.no_grad()
    def cost(self, score: str, images: Tensor, encoded: Encoded, *, entropy: Tensor) -> Tensor:
        """What losing each patch costs, (B, N) float32, by one of `dtf.SCORES`: `entropy` as given, in nats; the
        others as mean squared error of the patch, pixels in [0, 1]."""
        if score == "entropy":
            return entropy
        if score == "drop_cost":
            return self.log_drop_cost(encoded).exp()
        return self.synthesis_cost(images, encoded)

    @torch.no_grad()
    def synthesis_cost(self, images: Tensor, encoded: Encoded) -> Tensor:
        """Analysis by synthesis, (B, N) float32 mean squared error: what each patch adds to the picture.

        The picture is decoded from the globals alone, then from the globals and the patches whose error falls most by
        being kept, and so on, in rounds up to the shares of `SYNTHESIS_SHARES`. What the errors of the chosen patches
        fell by, in descending order, are the costs of the patches in the order in which they were chosen, so that every
        rule of filtering keeps that order.
        """
        num_patches = self.config.num_patches
        best = self.patch_error(images, encoded, torch.ones_like(encoded.patches.codes, dtype=torch.bool))
        keep = torch.zeros_like(best, dtype=torch.bool)
        order: list[Tensor] = []
        gains: list[Tensor] = []
        num_kept = 0
        for share in (*SYNTHESIS_SHARES, 1.0):
            gain = self.patch_error(images, encoded, keep) - best  # (B, N)
            ranked = gain.masked_fill(keep, -torch.inf).argsort(dim=1, descending=True, stable=True)
            num_chosen = max(1, round(share * num_patches)) - num_kept
            chosen = ranked[:, :num_chosen]
            order.append(chosen)
            gains.append(gain.gather(1, chosen))
            keep = keep.scatter(1, chosen, True)
            num_kept += num_chosen
        values = torch.cat(gains, dim=1).sort(dim=1, descending=True).values
        return torch.zeros_like(best).scatter(1, torch.cat(order, dim=1), values)

    def patch_error(self, images: Tensor, encoded: Encoded, keep: Tensor) -> Tensor:
        """Mean squared error of each patch, (B, N) float32, when the patches in `keep` are decoded."""
        output = self.reconstruct(encoded.globals.vectors, encoded.patches.vectors, keep)
        return self.patchify((output.float().clamp(0, 1) - images).square()).mean(dim=2)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, 3·p²)."""
        batch, side, patch = len(images), self.config.grid_side, self.config.patch_size
        x = images.reshape(batch, 3, side, patch, side, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, 3·p²) to (B, 3, H, W)."""
        batch, side, patch = len(patches), self.config.grid_side, self.config.patch_size
        x = patches.reshape(batch, side, side, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, side * patch, side * patch)
