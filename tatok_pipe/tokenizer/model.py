"""TaTok, the adaptive discrete tokenizer (arXiv 2605.16384): encoder, quantizers, entropy model, decoder.

What tokens can say by linear maps alone is said by those (`linear`), whose weights have closed forms; the encoder's and
the decoder's networks begin at zero on top of them, and correct. Patch codes are searched by synthesis (`search`).

Letters: B images, H = W image size in pixels, p patch size, N = (H/p)² patches in raster order, P = 3·p² values of a
patch, K globals, V_g and V_p codebook sizes, W width, D and C dimensions of the code vectors of globals and patches.

Images are float (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tatok_pipe.tokenizer.dtf import Filter, keep_mask, round_cost
from tatok_pipe.tokenizer.encoded import Encoded, Quantized
from tatok_pipe.tokenizer.linear import LinearCodec
from tatok_pipe.tokenizer.networks import DecoderNetwork, DropCostHead, EncoderNetwork
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.tokenizer.prior import Prior, PriorOutput
from tatok_pipe.tokenizer.quantizer import VQ, build_quantizer
from tatok_pipe.tokenizer.scores.table import SCORES
from tatok_pipe.tokenizer.search import Neighbourhood, ProjectedDecoder, search_codes

_SMALLEST_GAIN = 1e-6  # mean squared error, pixels in [0, 1]: 60 dB


@dataclass(frozen=True)
class Tokens:
    """What tokenizing a batch gives. All on the model's device."""

    global_codes: Tensor  # (B, K) int64
    patch_codes: Tensor  # (B, N) int64, all of them
    cost: Tensor  # (B, N) float32, or float16 as recorded, what losing each patch costs by the filter's score
    keep: Tensor  # (B, N) bool
    patch_entropy: Tensor  # (B, N) float32, h_i in nats
    mutual_information: Tensor | None  # (B,) float32, nats


class TaTok(nn.Module):
    def __init__(self, config: TaTokConfig):
        super().__init__()
        self.config = config
        self._known: tuple[object, Neighbourhood, ProjectedDecoder] | None = None
        self.global_quantizer = build_quantizer(config.global_codebook, num_places=config.num_globals)
        self.patch_quantizer = build_quantizer(config.patch_codebook)
        self.linear = LinearCodec(
            grid_side=config.grid_side,
            patch_size=config.patch_size,
            num_globals=config.num_globals,
            global_dim=self.global_quantizer.dim,
            patch_dim=self.patch_quantizer.dim,
        )
        self.encoder = EncoderNetwork(config) if config.encoder.depth else None
        self.decoder = DecoderNetwork(config)
        features = 2 * self.patch_quantizer.dim + 2 + (config.encoder.width if self.encoder else 0)
        self.drop_cost_head = DropCostHead(features)
        self.prior = Prior(
            width=config.prior.width,
            depth=config.prior.depth,
            num_heads=config.prior.heads,
            num_globals=config.num_globals,
            grid_side=config.grid_side,
            global_quantizer=self.global_quantizer,
            patch_quantizer=self.patch_quantizer,
        )

    def encode(self, images: Tensor, *, search_passes: int | None = None) -> Encoded:
        """Images (B, 3, H, W) to quantized globals and patches; gradients pass through. `search_passes` instead of
        the configured ones."""
        linear = self.linear
        with _exact(images):
            images = images.float()
            patches = self.patchify(images)
            global_latents = linear.global_latents(images)
            global_scale, patch_scale = self.global_quantizer.scale(), self.patch_quantizer.scale()
        more: Tensor | float = 0.0
        seen: list[Tensor] = []
        if self.encoder is not None:
            add, more, features = self.encoder(global_latents * global_scale, patches)
            global_latents = global_latents + add / global_scale
            seen = [features]
        found = self.global_quantizer.quantize(global_latents)
        with _exact(images):
            picture = self.patchify(linear.render(found.vectors))
            residual = patches - picture  # (B, N, P)
            projected = residual @ linear.patch_basis  # (B, N, C)
            latents = projected + more / patch_scale
            coded = self.patch_quantizer.quantize(latents)
            passes = self.config.search_passes if search_passes is None else search_passes
            if passes and isinstance(self.patch_quantizer, VQ):
                coded = self.patch_quantizer.at(latents, self._search(coded, residual, picture, passes))
            with torch.no_grad():
                gain = linear.gain(projected, coded.vectors)
                energy = torch.linalg.vecdot(residual, residual) / residual.shape[2]
                logs = torch.stack([energy, energy - gain], dim=2).clamp_min(_SMALLEST_GAIN).log()
                known = [latents * patch_scale, coded.vectors * patch_scale, logs]
        return Encoded(found, coded, gain, torch.cat([*known, *seen], dim=2).detach())

    @torch.no_grad()
    def _search(self, coded: Quantized, residual: Tensor, picture: Tensor, num_passes: int) -> Tensor:
        """Better codes than those of `coded`, (B, N), by the linear decoder."""
        neighbourhood, decoder = self._search_weights()
        errors = decoder.errors(residual, coded.vectors, picture)
        return search_codes(coded.codes, errors, neighbourhood, num_passes=num_passes)

    def _search_weights(self) -> tuple[Neighbourhood, ProjectedDecoder]:
        """Of the weights as they are; made anew when one of them has changed."""
        assert isinstance(self.patch_quantizer, VQ)
        linear, codebook = self.linear, self.patch_quantizer.codebook
        weights = (linear.neighbours, linear.patch_basis, linear.picture_basis, codebook)
        mark = tuple((id(weight), weight._version, weight.device) for weight in weights)
        if self._known is None or self._known[0] != mark:
            neighbourhood = Neighbourhood(linear.jacobian(), codebook[0])
            self._known = mark, neighbourhood, ProjectedDecoder(linear, neighbourhood.basis)
        return self._known[1:]

    def log_drop_cost(self, encoded: Encoded) -> Tensor:
        """The head's prediction (B, N) float32: logarithm of the mean squared error, pixels in [0, 1], that a patch
        gains when it is masked. No gradient reaches the encoder."""
        return self.drop_cost_head(encoded.features.detach())

    def predict(
        self, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor | None = None
    ) -> PriorOutput:
        """The entropy model's teacher-forced pass over codes (B, K) and (B, N)."""
        return self.prior(*self._read(global_codes, patch_codes), without_globals=without_globals)

    @torch.no_grad()
    def patch_entropy(
        self, global_codes: Tensor, patch_codes: Tensor, *, without_globals: Tensor | None = None
    ) -> Tensor:
        """h_i of codes (B, K) and (B, N), (B, N) float32 in nats: the entropies of the distributions that `predict`
        has logits of."""
        return self.prior.patch_entropy(
            *self._read(global_codes, patch_codes), without_globals=without_globals
        )

    def reconstruct(self, global_vectors: Tensor, patch_vectors: Tensor, keep: Tensor) -> Tensor:
        """Code vectors (B, K, D), (B, N, C) and keep mask (B, N) to images (B, 3, H, W) float32, not clamped."""
        with _exact(patch_vectors):
            picture = self.linear.render(global_vectors.float())
            patches = self.patchify(picture)
            output = picture + self.unpatchify(self.linear.residuals(patch_vectors.float(), patches, keep))
        return output + self.decoder(*self.scaled(global_vectors, patch_vectors), patches, keep)

    def scaled(self, global_vectors: Tensor, patch_vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors (B, K, D) and (B, N, C) at about unit size, as the networks read them."""
        return global_vectors * self.global_quantizer.scale(), patch_vectors * self.patch_quantizer.scale()

    def _read(self, global_codes: Tensor, patch_codes: Tensor) -> tuple[Tensor, Tensor]:
        return self.scaled(
            self.global_quantizer.codes_to_vectors(global_codes),
            self.patch_quantizer.codes_to_vectors(patch_codes),
        )

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
    def tokenize(
        self,
        images: Tensor,
        filter: Filter,
        *,
        with_mutual_information: bool = False,
        rounds_costs: bool = False,
    ) -> Tokens:
        """Encode, measure entropies and filter a batch of images (B, 3, H, W).

        With `rounds_costs` the filter decides on costs as they are recorded, (B, N) float16.

        `with_mutual_information` adds a second pass of the entropy model, without globals:
        Î(G;P) = sum of H(z_i | z_<i) - H(z_i | G, z_<i).
        """
        encoded = self.encode(images)
        global_codes, patch_codes = encoded.globals.codes, encoded.patches.codes
        entropy = self.patch_entropy(global_codes, patch_codes)  # (B, N)
        cost = self.cost(filter.score, images, encoded, entropy=entropy)
        if rounds_costs:
            cost = round_cost(cost)
        mutual_information = None
        if with_mutual_information:
            hidden = torch.ones(len(images), dtype=torch.bool, device=images.device)
            alone = self.patch_entropy(global_codes, patch_codes, without_globals=hidden)
            mutual_information = (alone - entropy).sum(dim=1)
        return Tokens(global_codes, patch_codes, cost, keep_mask(cost, filter), entropy, mutual_information)

    @torch.no_grad()
    def cost(self, score: str, images: Tensor, encoded: Encoded, *, entropy: Tensor | None = None) -> Tensor:
        """What losing each patch costs, (B, N) float32, by one of `SCORES`, in its unit; see `Score.measure`. Raises
        KeyError for any other name."""
        return SCORES[score].measure(self, images, encoded, entropy=entropy)

    def patch_error(self, images: Tensor, encoded: Encoded, keep: Tensor) -> Tensor:
        """Mean squared error of each patch, (B, N) float32, when the patches in `keep` are decoded."""
        output = self.reconstruct(encoded.globals.vectors, encoded.patches.vectors, keep)
        return self.patchify((output.float().clamp(0, 1) - images).square()).mean(dim=2)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, P)."""
        return self.linear.patchify(images)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, P) to (B, 3, H, W)."""
        return self.linear.unpatchify(patches)


def _exact(like: Tensor) -> torch.autocast:
    """Codes are chosen in float32, whatever autocast says."""
    return torch.autocast(like.device.type, enabled=False)
