"""Does filtering lose fine detail? Text and textures, filtered against unfiltered, in paired tests.

The reference is the same tokenizer with all its patches, and, where one is given, a tokenizer of patch tokens alone.

Letters: B images, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.ar.generation.exports import encode_image
from tatok_pipe.evaluation.bench import BATCH_IMAGES, Bench
from tatok_pipe.evaluation.findings import Findings
from tatok_pipe.evaluation.metrics import psnr, ssim
from tatok_pipe.evaluation.pictures import Picture, read_pictures, to_images, to_pixels
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.probes import probe_pictures
from tatok_pipe.evaluation.suites.base import Row
from tatok_pipe.evaluation.suites.fine_detail.summary import Summary, psnr_gain
from tatok_pipe.evaluation.suites.fine_detail.text_reading import can_read, error_rate
from tatok_pipe.tokenizer.model import TaTok

KINDS = ("text", "texture")
_PARTS_OF_PROBES = 3
_NUM_PICTURES = 2  # of a part, those that lose most


class FineDetail:
    name = "fine_detail"

    def missing(self, plan: EvaluationPlan) -> str:
        return ""

    def parts(self, plan: EvaluationPlan) -> list[str]:
        probes = [f"{kind}-{place}" for kind in KINDS for place in range(_PARTS_OF_PROBES)]
        return [*probes, *(f"data-{place:06d}" for place in range(len(plan.sources)))]

    def measure(self, part: str, bench: Bench) -> list[Row]:
        rows: list[Row] = []
        for pictures in _batches(part, bench):
            rows += _measure(pictures, bench, is_probe=not part.startswith("data"))
        # Pictures are for those that lose most alone.
        for row in sorted(rows, key=psnr_gain)[_NUM_PICTURES:]:
            row |= {name: None for name in row if name.endswith("picture")}
        return rows

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        summary = Summary(rows, plan)
        return Findings(
            self.name,
            "Fine detail: filtered against unfiltered",
            verdicts=summary.verdicts(),
            figures=summary.figures(),
            tables=summary.tables(),
            plots=summary.plots(),
            galleries=summary.galleries(),
            images=summary.images(),
        )


def _batches(part: str, bench: Bench) -> Iterator[list[Picture]]:
    plan = bench.plan
    kind, _, place = part.partition("-")
    if kind == "data":
        pictures = read_pictures(plan.sources[int(place)], image_size=plan.image_size)
        pictures = [picture for picture in pictures if picture.kind in KINDS]
    else:
        first = int(place) * BATCH_IMAGES
        last = first + BATCH_IMAGES
        pictures = probe_pictures(kind, image_size=plan.image_size, num_images=last, seed=plan.seed)[first:]
    for start in range(0, len(pictures), BATCH_IMAGES):
        yield pictures[start : start + BATCH_IMAGES]


@torch.no_grad()
def _measure(pictures: list[Picture], bench: Bench, *, is_probe: bool) -> list[Row]:
    plan, model = bench.plan, bench.tokenizer.model
    images = to_images(pictures, bench.device)
    tokens = model.tokenize(images, plan.filter)
    decoded = {"filtered": model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep)}
    decoded["full"] = _decode_all(model, tokens.global_codes, tokens.patch_codes)
    num_tokens = {"full": model.config.num_globals + model.config.num_patches}
    if bench.baseline is not None:
        other = bench.baseline.model
        encoded = other.encode(images)
        decoded["baseline"] = _decode_all(other, encoded.globals.codes, encoded.patches.codes)
        num_tokens["baseline"] = other.config.num_globals + other.config.num_patches
    measured = {name: _quality(output, images, bench) for name, output in decoded.items()}
    rows: list[Row] = []
    for place, picture in enumerate(pictures):
        row: Row = {
            "key": picture.key,
            "set": picture.kind if is_probe else f"{picture.kind} of the data",
            "tokens": model.config.num_globals + int(tokens.keep[place].sum()),
            "has_known_text": bool(picture.text),
            "original_picture": encode_image(picture.pixels, "png"),
            "original_cer": _read(picture.pixels, picture),
        }
        row |= {f"{name}_tokens": count for name, count in num_tokens.items()}
        for name, output in decoded.items():
            pixels = to_pixels(output[place])
            row |= {f"{name}_{each}": values[place].item() for each, values in measured[name].items()}
            row |= {f"{name}_cer": _read(pixels, picture), f"{name}_picture": encode_image(pixels, "png")}
        rows.append(row)
        bench.touch(1)  # reading takes a second an image
    return rows


def _decode_all(model: TaTok, global_codes: Tensor, patch_codes: Tensor) -> Tensor:
    """From codes (B, K) and (B, N), all kept."""
    return model.decode(global_codes, patch_codes, torch.ones_like(patch_codes, dtype=torch.bool))


def _quality(output: Tensor, images: Tensor, bench: Bench) -> dict[str, Tensor]:
    return {
        "psnr": psnr(output, images),
        "ssim": ssim(output, images),
        "perceptual": bench.perceptual(output, images),
    }


def _read(pixels: np.ndarray, picture: Picture) -> float | None:
    return error_rate(pixels, picture.text) if picture.text and can_read() else None
