"""The tables and sentences of the report, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tatok_pipe.evaluation.pictures import to_pixels
from tatok_pipe.evaluation.suites.reconstruction.suite import CODECS, codec_at
from tatok_pipe.evaluation.textbook import load_textbook
from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.decode import decode_crops
from tatok_pipe.tokenizer.analysis import CONTROLS, analyse, decode, psnr
from tatok_pipe.tokenizer.checkpoint import Tokenizer
from tatok_pipe.tokenizer.dtf import Filter, calibrate, keep_mask
from tatok_pipe.tokenizer.heldout import KEEP_RATES
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.scores.table import SCORES
from tests.benchmarks.tokenizer.measured import (
    Measured,
    jpeg_bytes,
    log_choices,
    pooled,
    to_images,
    worst_decile,
)

NAMES = (*SCORES, *CONTROLS)
TOLD = {
    **{name: f"`{name}`" for name in SCORES}, "entropy": "`entropy` (the paper's)", "random": "random",
    "variance": "lowest variance", "neighbours": "error to the neighbours' mean", "one_shot": "one-shot oracle",
    "prefix": "fixed prefix",
}  # fmt: skip
CONFIDENCE = 0.95


class Report(Measured):
    """What was measured, told; each method is a section of the report."""

    def heading(self, source: str) -> str:
        by_group = f", over means of the {len(set(self.groups))} photographs" if self.groups else ""
        return (
            f"{len(self.images)} images of {source}, fingerprint `{self.tokenizer.fingerprint[:12]}`. PSNR is the mean "
            f"over images, dB; perceptual distance is of EfficientNet-Lite0's features (not LPIPS), lower is better; "
            f"± is half of the {CONFIDENCE:.0%} interval of the mean paired difference to random dropping{by_group}."
        )

    def beside(self, folder: Path) -> str:
        """The default score beside what needs no network, at equal bits and bytes."""
        score = DTFConfig().score
        textbook = load_textbook(folder)
        errors = textbook.errors(self.images)
        pixels = [to_pixels(image) for image in self.images]
        rows = []
        for rate in (1.0, *KEEP_RATES):
            kept = round(rate * self.num_patches)
            keep = torch.ones_like(self.found.patch_codes, dtype=torch.bool)
            if kept < self.num_patches:
                cost = self.found.costs[score]
                value = calibrate(cost, rule="threshold", target_patches=kept, min_patches=1)
                keep = keep_mask(cost, Filter("threshold", value))
            bits = self.bits(keep.sum(1))
            ours, found = self.quality(keep)[0], textbook.quality_at(errors, bits.mean().item())
            cells = [
                f"{self.num_globals + keep.sum(1).double().mean():.0f}",
                f"{bits.mean() / 8:.0f}",
                f"{ours.mean():.2f}",
                f"{found.psnr.mean():.2f} ({difference(ours, found.psnr, 2, self.groups)})",
            ]
            for codec in CODECS:
                coded = [
                    codec_at(each, codec, max_bytes=limit.item() / 8)
                    for each, limit in zip(pixels, bits, strict=True)
                ]
                there = [each for each in coded if each is not None]
                cells.append(
                    f"{np.mean([quality for _, quality in there]):.2f} "
                    f"({np.mean([num_bytes for num_bytes, _ in there]):.0f} bytes)"
                    if there
                    else "not in this Pillow"
                )
            rows.append(cells)
        header = [
            "tokens", "bytes", f"`{score}`, one threshold", "textbook (ours over it)", *CODECS,
        ]  # fmt: skip
        return (
            "Beside what needs no network. The textbook is k-means alone (`tatok_pipe/evaluation/textbook.py`): 16 "
            f"mean colours and a codeword of 11 bits for each patch of {textbook.patch_size} px, kept where it lowers "
            "the error most by one threshold for all images, at equal bits on average. Codes have fixed length; which "
            "patches are kept counts for both. Image codecs: the best quality within the bytes of the image's tokens, "
            "or the smallest file where that is larger:\n\n" + table(header, rows)
        )

    def scores(self) -> str:
        prices = self.prices()
        everything = torch.ones_like(self.found.patch_codes, dtype=torch.bool)
        best_psnr, best_distance = self.quality(everything)
        header = [
            "patches of each image kept by",
            *[f"{rate:.0%}" for rate in KEEP_RATES],
            "encode time",
        ]
        by_psnr: list[list[str]] = []
        by_distance: list[list[str]] = []
        results = {
            name: [
                self.quality(
                    keep_mask(self.found.costs[name], Filter("top_k", round(rate * self.num_patches)))
                )
                for rate in KEEP_RATES
            ]
            for name in NAMES
        }
        for name in NAMES:
            cells: tuple[list[str], list[str]] = ([], [])
            for got, reference in zip(results[name], results["random"], strict=True):
                for place, digits in ((0, 2), (1, 3)):
                    told = f"{got[place].mean():.{digits}f}"
                    if name != "random":
                        told += f" ({difference(got[place], reference[place], digits, self.groups)})"
                    cells[place].append(told)
            by_psnr.append([TOLD[name], *cells[0], prices.get(name, "")])
            by_distance.append([TOLD[name], *cells[1]])
        return "\n\n".join(
            [
                f"PSNR at the same count in every image (all patches: {best_psnr.mean():.2f}). Encode time is that "
                "of a batch with this score over that without any; random and the pixel measures take none.",
                table(header, by_psnr),
                f"Perceptual distance (all patches: {best_distance.mean():.3f}):",
                table(header[:-1], by_distance),
            ]
        )

    def thresholds(self) -> str:
        rows = []
        for rule, name in [*(("threshold", name) for name in SCORES), ("proportional", DTFConfig().score)]:
            cost = self.found.costs[name]
            for rate in KEEP_RATES:
                kept = round(rate * self.num_patches)
                value = calibrate(cost, rule=rule, target_patches=kept, min_patches=1)
                masks = {
                    rule: keep_mask(cost, Filter(rule, value)),
                    "count": keep_mask(cost, Filter("top_k", kept)),
                }
                got = {each: self.quality(mask)[0] for each, mask in masks.items()}
                tokens = self.num_globals + masks[rule].sum(1).double()
                rows.append(
                    [
                        f"{rule}, {TOLD[name]}",
                        f"{self.num_globals + kept}",
                        f"{tokens.mean():.1f} ± {tokens.std():.1f}",
                        f"{got[rule].mean():.2f} ({difference(got[rule], got['count'], 2, self.groups)})",
                        f"{pooled(got[rule]):.2f} ({pooled(got[rule]) - pooled(got['count']):+.2f})",
                        f"{worst_decile(got[rule]):.2f} "
                        f"({worst_decile(got[rule]) - worst_decile(got['count']):+.2f})",
                    ]
                )
        header = [
            "rule and score", "tokens asked", "tokens, mean ± std", "mean PSNR (to fixed count)",
            "PSNR of the mean squared error", "worst tenth",
        ]  # fmt: skip
        return (
            "One value for all images against the same count in every image, at equal mean tokens. A threshold on "
            "squared error serves the squared error of all images together, and those that are worst off; the mean of "
            "PSNR, a logarithm, counts a decibel of an easy image as much. `proportional` shares out tokens as InfoTok "
            "does:\n\n" + table(header, rows)
        )

    def globals(self, baseline: Tokenizer | None) -> str:
        everything = torch.ones_like(self.found.patch_codes, dtype=torch.bool)
        others = torch.arange(len(self.images)).roll(1)
        whole = self.quality(everything)[0]
        lines = []
        default = self.found.costs[DTFConfig().score]
        for told, keep in (
            ("all patches", everything),
            ("a quarter of them", keep_mask(default, Filter("top_k", self.num_patches // 4))),
            ("no patch", ~everything),
        ):  # fmt: skip
            own = self.quality(keep)[0]
            shuffled = psnr(decode(self.model, self.found, keep, globals_from=others), self.images)
            lines.append(
                f"- Another image's globals with {told}: {difference(shuffled, own, 2, self.groups)} dB."
            )
        alone = [self.without_globals(*codes) for codes in self.code_batches()]
        for told, mine, without in (
            ("by entropies, as the paper has it", self.found.entropy, torch.cat([each[0] for each in alone])),
            ("by surprisals, nats really saved", self.found.surprisal, torch.cat([each[1] for each in alone])),
        ):  # fmt: skip
            nats = (without - mine).sum(1)
            share = (nats > 0).double().mean()
            lines.append(
                f"- Î(G;P) {told}: {nats.mean():.2f} nats an image, above 0 on {share:.0%} of the images."
            )
        if baseline is not None:
            lines += self.against(baseline, whole)
        return "\n".join(["What globals do:", "", *lines])

    def against(self, baseline: Tokenizer, whole: Tensor) -> list[str]:
        """Global and patch tokens against patch tokens alone, at equal total tokens."""
        other = baseline.model
        alone = analyse(other, self.images)
        plain = psnr(decode(other, alone, torch.ones_like(alone.patch_codes, dtype=torch.bool)), self.images)
        kept = other.config.num_patches - self.num_globals
        mask = keep_mask(self.found.costs[DTFConfig().score], Filter("top_k", kept))
        ours = self.quality(mask)[0]
        weights = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (self.model, other)]
        return [
            f"- Patch tokens alone ({weights[1]:.2f} M weights, ours {weights[0]:.2f}; fingerprint "
            f"`{baseline.fingerprint[:12]}`): {plain.mean():.2f} dB with {other.config.num_patches} tokens; ours with "
            f"as many, {self.num_globals} of them globals: {ours.mean():.2f} "
            f"({difference(ours, plain, 2, self.groups)}); with all {self.num_globals + self.num_patches}: "
            f"{whole.mean():.2f}."
        ]  # fmt: skip

    def codes(self) -> str:
        ratio = self.found.surprisal.mean() / self.found.entropy.mean()
        lines = [
            f"- Mean surprisal {self.found.surprisal.mean():.3f} nats a patch code, mean entropy "
            f"{self.found.entropy.mean():.3f}: ratio {ratio:.3f}."
        ]
        ten = CropConfig(kind="ten_crop")
        crops = [
            pixels
            for sample in self.samples
            for pixels in decode_crops(sample.image, self.preprocess, ten, key=sample.key).pixels
        ]
        many = analyse(self.model, to_images(crops), controls=False)
        for name, codes, size in (
            ("patch", many.patch_codes, self.model.patch_quantizer.vocab_size),
            ("global", many.global_codes, self.model.global_quantizer.vocab_size),
        ):
            share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
            lines.append(
                f"- The {name} codes of ten crops of each image ({codes.numel():,} of them) use "
                f"{(share > 0).double().mean():.1%} of {size:,}; perplexity "
                f"{torch.special.entr(share).sum().exp():.0f}."
            )
        rows = []
        for rate in KEEP_RATES:
            kept = round(rate * self.num_patches)
            cells = []
            for name in ("gain", "entropy", "random"):
                mask = keep_mask(self.found.costs[name], Filter("top_k", kept))
                cells.append(f"{(self.found.surprisal * mask).sum(1).mean():.0f}")
            rows.append([f"{rate:.0%}", *cells, f"{log_choices(self.num_patches, kept):.0f}"])
        header = ["kept", "`gain`", "`entropy`", "random", "which were kept"]
        return "\n".join(
            [
                "Codes:", "", *lines, "",
                "Nats of the kept patch codes of an image, as the entropy model costs them, and of saying which they "
                "are (ln of the number of choices, which no code has to exceed). The model predicts from dropped codes "
                "too, which a receiver lacks, so the first are from below:", "",
                table(header, rows),
            ]
        )  # fmt: skip

    def content(self) -> str:
        size = self.model.config.image_size
        filter = self.tokenizer.filter(DTFConfig())
        kept = keep_mask(self.found.costs[filter.score], filter).sum(1)
        sizes = [jpeg_bytes(image) / size**2 for image in self.images]
        result: tuple[float, float] = stats.spearmanr(kept.numpy(), sizes)  # type: ignore[assignment]
        colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        grey = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 1, 1)
        uniform = torch.cat([colours, grey]).expand(-1, -1, size, size).contiguous()
        flat = self.model.tokenize(uniform, filter).keep.sum(1)
        return "\n".join(
            [
                f"Content, with the default filter ({filter.rule} {filter.value:.4g} on `{filter.score}`):", "",
                f"- {self.num_globals + kept.double().mean():.1f} ± {kept.double().std():.1f} tokens an image, "
                f"{self.num_globals + kept.min()} to {self.num_globals + kept.max()}.",
                f"- Spearman correlation of tokens with JPEG bytes a pixel: {result[0]:.2f} (n = {len(sizes)}).",
                f"- {len(uniform)} images of one colour keep {flat.double().mean():.1f} of {self.num_patches} patches "
                f"on average, {flat.max()} at most.",
            ]
        )  # fmt: skip


def difference(values: Tensor, reference: Tensor, digits: int, groups: list[str] | None = None) -> str:
    """Mean paired difference and half of its interval; of the means of `groups`, where they are given."""
    paired = (values - reference).double()
    if groups:
        members = {name: [each == name for each in groups] for name in groups}
        paired = torch.stack([paired[torch.tensor(rows)].mean() for rows in members.values()])
    half = paired.std() / math.sqrt(len(paired)) * stats.t.ppf((1 + CONFIDENCE) / 2, len(paired) - 1)
    return f"{paired.mean():+.{digits}f} ± {half:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
