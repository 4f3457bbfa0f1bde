"""A codec out of a textbook, without any network: what a learned tokenizer has to beat at equal bits.

A coarse grid of mean colours, each one of 512 codewords and the grid enlarged bicubically, stands where TaTok has its
globals. What is missing in a patch of 8 x 8 pixels is the nearest of 2,048 codewords: vector quantization as Gersho and
Gray 1992 have it, both codebooks by k-means on photographs. Kept are the patches whose error falls
most, by one threshold for all images.

Letters: M images, S image size in pixels, G side of the grid, p patch size, N = (S/p)² patches, V codewords.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

GRID_SIDE = 4
PACKAGED = Path(str(resources.files("tatok_pipe") / "pretrained" / "textbook-8"))
_WEIGHTS = "codebooks.safetensors"
_CHUNK_ROWS = 8192  # of distances to all codewords, that are held at once
_MAX_PSNR_DB = 100.0


@dataclass(frozen=True)
class TextbookErrors:
    """Mean squared error of each patch, pixels in [0, 1], (M, N) float64: from the grid of colours alone, and how far
    its codeword lowers it."""

    coarse: Tensor
    gain: Tensor


@dataclass(frozen=True)
class TextbookQuality:
    """Of each image, (M,) float64: its PSNR in dB, and the bits that it takes."""

    psnr: Tensor
    bits: Tensor


@dataclass(frozen=True)
class Textbook:
    """The codebooks: `colours` (V, 3), `residuals` (V, 3·p²), float32, pixels in [0, 1]."""

    colours: Tensor
    residuals: Tensor

    @property
    def patch_size(self) -> int:
        return math.isqrt(self.residuals.shape[1] // 3)

    def fits(self, image_size: int) -> bool:
        """Whether images of this size divide into its patches and its grid."""
        return image_size % self.patch_size == 0 and image_size % GRID_SIDE == 0

    def to(self, device: torch.device | str) -> Textbook:
        return Textbook(self.colours.to(device), self.residuals.to(device))

    def errors(self, images: Tensor) -> TextbookErrors:
        """Of images (M, 3, S, S) in [0, 1]."""
        grid = mean_colours(images)
        codes = nearest(grid.flatten(0, 2), self.colours)
        coarse = enlarge(self.colours[codes].view_as(grid), images.shape[-1])
        codes = nearest(patchify(images - coarse, self.patch_size).flatten(0, 1), self.residuals)
        filled = patchify(coarse, self.patch_size)
        filled = filled + self.residuals[codes].view_as(filled)
        target = patchify(images, self.patch_size)

        def error(output: Tensor) -> Tensor:
            return (output.clamp(0, 1) - target).double().square().mean(dim=2)

        without = error(patchify(coarse, self.patch_size))
        return TextbookErrors(without, without - error(filled))

    def bits(self, num_kept: Tensor, num_patches: int) -> Tensor:
        """Bits of an image as codes of fixed length, which patches have one included (log2 of the number of choices):
        kept patches (M,) to (M,) float64."""
        fixed = GRID_SIDE**2 * math.log2(len(self.colours))
        each = math.log2(len(self.residuals))
        return fixed + num_kept.double() * each + position_bits(num_kept, num_patches)

    def quality_at(self, errors: TextbookErrors, mean_bits: float) -> TextbookQuality:
        """With as many patches as fit into `mean_bits` on average over the images, by one threshold for all of them;
        where not even the grid of colours fits, with that alone."""
        num_patches = errors.gain.shape[1]
        ranked = errors.gain.flatten().sort(descending=True).values

        def kept_with(count: int) -> Tensor:
            if count == 0:
                return torch.zeros_like(errors.gain, dtype=torch.bool)
            return errors.gain >= ranked[count - 1]

        low, high = 0, len(ranked)  # patches of all images; bits grow with every one
        while low < high:
            middle = (low + high + 1) // 2
            bits = self.bits(kept_with(middle).sum(1), num_patches).mean()
            low, high = (middle, high) if bits <= mean_bits + 1e-6 else (low, middle - 1)
        keep = kept_with(low)
        error = (errors.coarse - torch.where(keep, errors.gain, 0.0)).mean(dim=1)
        psnr = (-10 * error.clamp_min(1e-12).log10()).clamp_max(_MAX_PSNR_DB)
        return TextbookQuality(psnr, self.bits(keep.sum(1), num_patches))


def load_textbook(folder: Path = PACKAGED) -> Textbook:
    """The codebooks of a folder that `tests.benchmarks.textbook` wrote, else the packaged ones, for patches of 8
    pixels."""
    found = load_file(folder / _WEIGHTS)
    return Textbook(found["colours"].float(), found["residuals"].float())


def position_bits(num_kept: Tensor, num_patches: int) -> Tensor:
    """Bits of saying which patches are kept, log2 of the number of choices: kept patches (M,) to (M,) float64."""
    kept = num_kept.double()
    total = torch.full_like(kept, num_patches)
    choices = torch.lgamma(total + 1) - torch.lgamma(kept + 1) - torch.lgamma(total - kept + 1)
    return choices / math.log(2)


def mean_colours(images: Tensor) -> Tensor:
    """Images (M, 3, S, S) to the means of a grid of cells, (M, G, G, 3)."""
    return F.avg_pool2d(images, images.shape[-1] // GRID_SIDE).permute(0, 2, 3, 1).contiguous()


def enlarge(grid: Tensor, image_size: int) -> Tensor:
    """Colours (M, G, G, 3) to a picture (M, 3, S, S) in [0, 1]."""
    small = grid.permute(0, 3, 1, 2)
    return F.interpolate(small, size=image_size, mode="bicubic", align_corners=False).clamp(0, 1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(M, 3, S, S) to (M, N, 3·p²)."""
    return F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codeword (V, C) of each vector (R, C): (R,) int64."""
    half = codebook.square().sum(1) / 2
    return torch.cat([(part @ codebook.t() - half).argmax(1) for part in vectors.split(_CHUNK_ROWS)])
