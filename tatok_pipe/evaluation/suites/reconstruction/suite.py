"""How well images come back from their tokens, and at which rate.

Letters: B images, S image size in pixels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL import features as pillow_features

from tatok_pipe.ar.generation.exports import decode, encode_image
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import (
    Cell,
    Exhibit,
    Figure,
    Findings,
    Gallery,
    Pane,
    Plot,
    Series,
    Table,
)
from tatok_pipe.evaluation.metrics import frechet_distance, ms_ssim, num_scales, psnr, ssim
from tatok_pipe.evaluation.pictures import Picture, to_images, to_pixels
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.statistics import bootstrap_mean
from tatok_pipe.evaluation.suites.base import (
    TEXTBOOK,
    TEXTBOOK_NOTE,
    PictureSuite,
    Row,
    code_bits,
    column,
    image_table,
    textbook_quality,
    textbook_rows,
)
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats

# What an image is decoded from: the filter that is evaluated, and all of its tokens.
VARIANTS = {"filtered": "with the filter", "full": "with all patches"}
METRICS = (
    ("psnr", "PSNR", "dB"),
    ("ssim", "SSIM", ""),
    ("ms_ssim", "MS-SSIM", ""),
    ("perceptual", "perceptual distance (EfficientNet-Lite0, not LPIPS)", ""),
)
CODECS = ("JPEG", "WEBP", "AVIF")
_NUM_SHOWN = 4  # worst images, and pictures that every part keeps for it
_MAX_QUALITY = 95
# One thread, so that a node's cores do not decide the bytes.
_CODEC_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "WEBP": {"method": 4},
    "AVIF": {"speed": 6, "max_threads": 1},
}


class Reconstruction(PictureSuite):
    name = "reconstruction"

    def measure(self, part: str, bench: Bench) -> list[Row]:
        rows: list[Row] = []
        model, filter = bench.tokenizer.model, bench.plan.filter
        for pictures, images in self.batches(part, bench):
            with torch.no_grad():
                encoded = model.encode(images)
                logits = model.predict(encoded.globals.codes, encoded.patches.codes).patch_logits
                entropy = entropy_nats(logits)
                surprisal = surprisal_nats(logits, encoded.patches.codes)
                cost = model.cost(filter.score, images, encoded, entropy=entropy)
            masks = {"filtered": keep_mask(cost, filter), "full": keep_mask(cost, Filter("none", 0))}
            bits = code_bits(masks["filtered"].sum(1), bench=bench)
            batch: list[Row] = [
                {
                    "key": picture.key,
                    "kind": picture.kind,
                    "tokens": model.config.num_globals + int(masks["filtered"][place].sum()),
                    "bits": bits[place].item(),
                    "surprisal_nats": (surprisal[place] * masks["filtered"][place]).sum().item(),
                }
                for place, picture in enumerate(pictures)
            ]
            for row, beside in zip(batch, textbook_rows(images, bench), strict=True):
                row |= beside
            originals = bench.features(images).vectors
            for variant, keep in masks.items():
                decoded = model.decode(encoded.globals.codes, encoded.patches.codes, keep)
                measured = {
                    "psnr": psnr(decoded, images),
                    "ssim": ssim(decoded, images),
                    "ms_ssim": ms_ssim(decoded, images),
                    "perceptual": bench.perceptual(decoded, images),
                }
                vectors = bench.features(decoded).vectors
                for place, row in enumerate(batch):
                    row |= {f"{variant}_{name}": values[place].item() for name, values in measured.items()}
                    row[f"{variant}_features"] = vectors[place]
                    row["features"] = originals[place]
                    row[f"{variant}_picture"] = encode_image(to_pixels(decoded[place]), "png")
            for place, (row, picture) in enumerate(zip(batch, pictures, strict=True)):
                row["picture"] = encode_image(picture.pixels, "png")
                for codec in CODECS:
                    found = codec_at(picture.pixels, codec, max_bytes=bits[place].item() / 8)
                    num_bytes, quality = found or (None, None)
                    row |= {f"{codec.lower()}_bytes": num_bytes, f"{codec.lower()}_psnr": quality}
            rows += batch
        # Pictures are for the worst ones alone.
        order = np.argsort([row["filtered_psnr"] for row in rows], kind="stable")
        for place in order[_NUM_SHOWN:]:
            rows[place] |= {"picture": None, "filtered_picture": None, "full_picture": None}
        return rows

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        num_pixels = plan.image_size**2

        def mean(name: str, values: np.ndarray, unit: str = "") -> Figure:
            found = bootstrap_mean(values, confidence=plan.confidence, seed=plan.seed)
            return Figure.of(name, found, unit)

        figures = [
            mean("tokens", column(rows, "tokens"), "tokens an image"),
            mean("bits per pixel, codes of fixed length", column(rows, "bits") / num_pixels, "bit/px"),
        ]
        table: list[list[Cell]] = []
        features = column(rows, "features")
        distance = plan.features.distance_name
        for variant, told in VARIANTS.items():
            found = [
                mean(f"{label}, {told}", column(rows, f"{variant}_{name}"), unit)
                for name, label, unit in METRICS
            ]
            fd = frechet_distance(column(rows, f"{variant}_features"), features) if len(rows) > 1 else None
            figures += found
            if fd is not None:
                figures.append(Figure(f"r{distance}, {told}", fd, "", len(rows)))
            table.append([told, *(figure.value for figure in found), fd])
        beside = textbook_quality(rows, float(column(rows, "bits").mean()))
        if beside is not None:
            figures += [
                mean(f"{TEXTBOOK}: PSNR", beside, "dB"),
                mean(f"PSNR over {TEXTBOOK}", column(rows, "filtered_psnr") - beside, "dB"),
            ]
        for codec in _codecs_of(rows):
            figures += [
                mean(f"{codec}: PSNR", column(rows, f"{codec.lower()}_psnr"), "dB"),
                mean(
                    f"{codec}: bytes over those of the tokens",
                    8 * column(rows, f"{codec.lower()}_bytes") / column(rows, "bits"),
                ),
            ]
        scales = num_scales(plan.image_size)
        count = f"n = {len(rows)} images"
        return Findings(
            self.name,
            f"Reconstruction of {len(rows)} images",
            verdicts=[_verdict(figures, rows)],
            figures=figures,
            tables=[
                Table(
                    "quality",
                    "Quality",
                    ["decoded", "PSNR, dB", "SSIM", f"MS-SSIM, {scales} scales", "perceptual", f"r{distance}"],
                    table,
                    note="Means over images; perceptual distance is of EfficientNet-Lite0's features, not LPIPS. "
                    "A Fréchet distance of few images has a bias that falls with their number: compare it at equal n.",
                ),
                _against_codecs(rows, beside),
            ],
            plots=[
                Plot(
                    "psnr_by_tokens", "Quality of each image", "tokens of the image", "PSNR, dB", count,
                    [
                        Series(
                            told, column(rows, "tokens").tolist(), column(rows, f"{variant}_psnr").tolist(),
                            kind="points",
                        )
                        for variant, told in VARIANTS.items()
                    ],
                    caption="Both of an image stand over the tokens that the filter left it.",
                ),
                _histogram(rows, count),
            ],
            galleries=[_worst(rows)],
            images=image_table(
                rows,
                ["key", "kind", "tokens", "bits", "surprisal_nats"]
                + [f"{variant}_{name}" for variant in VARIANTS for name, _, _ in METRICS]
                + [f"{codec.lower()}_{name}" for codec in _codecs_of(rows) for name in ("bytes", "psnr")],
            ),
        )  # fmt: skip


def codec_at(pixels: np.ndarray, codec: str, *, max_bytes: float) -> tuple[int, float] | None:
    """Bytes and PSNR (dB) of the best quality of a codec that takes at most `max_bytes`, or, where even its lowest
    takes more, of that one: pixels (S, S, 3) uint8. None where this Pillow comes without the codec."""
    if codec == "AVIF" and not pillow_features.check("avif"):
        return None
    low, high = 0, _MAX_QUALITY
    while low < high:  # sizes grow with quality, but for ripples that this does not care about
        middle = (low + high + 1) // 2
        if len(_encode(pixels, codec, middle)) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    encoded = _encode(pixels, codec, low)
    decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    pair = [to_images([Picture("", each)]) for each in (decoded, pixels)]
    return len(encoded), psnr(*pair).item()


def _encode(pixels: np.ndarray, codec: str, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, codec, quality=quality, **_CODEC_OPTIONS[codec])
    return file.getvalue()


def _codecs_of(rows: list[Row]) -> list[str]:
    """Those that all of the nodes had."""
    return [codec for codec in CODECS if all(row[f"{codec.lower()}_bytes"] is not None for row in rows)]


def _against_codecs(rows: list[Row], textbook: np.ndarray | None) -> Table:
    cells: list[list[Cell]] = [
        [
            "tokens, codes of fixed length",
            float(column(rows, "bits").mean() / 8),
            float(column(rows, "filtered_psnr").mean()),
            None,
        ]
    ]
    if textbook is not None:
        cells.append([TEXTBOOK, float(column(rows, "bits").mean() / 8), float(textbook.mean()), None])
    for codec in _codecs_of(rows):
        name = codec.lower()
        fits = float((8 * column(rows, f"{name}_bytes") <= column(rows, "bits")).mean())
        cells.append(
            [
                codec,
                float(column(rows, f"{name}_bytes").mean()),
                float(column(rows, f"{name}_psnr").mean()),
                fits,
            ]
        )
    return Table(
        "codecs",
        "Beside a textbook and image codecs at equal bytes",
        ["", "bytes an image", "PSNR, dB", "share of images at or below the tokens' bytes"],
        cells,
        note=f"{TEXTBOOK_NOTE} Codecs: each image at the best quality that takes no more bytes than its tokens; where "
        "even the lowest quality takes more, at that one: its header alone may be larger. Codecs aim at pixels, and "
        "are not what an image model is trained on.",
    )  # fmt: skip


def _histogram(rows: list[Row], count: str) -> Plot:
    counts, edges = np.histogram(column(rows, "tokens"), bins=min(20, max(4, len(rows) // 5)))
    middles = (edges[1:] + edges[:-1]) / 2
    return Plot(
        "tokens", "Tokens of an image", "tokens", "images", count,
        [Series("images", middles.tolist(), counts.tolist(), kind="bars")],
    )  # fmt: skip


def _worst(rows: list[Row]) -> Gallery:
    shown = sorted((row for row in rows if row["picture"]), key=lambda row: row["filtered_psnr"])[:_NUM_SHOWN]
    return Gallery(
        "Worst images",
        "The images with the lowest PSNR with the filter.",
        [
            Exhibit(
                f"{row['key']} · {row['tokens']} tokens · PSNR {row['filtered_psnr']:.1f} dB, "
                f"{row['full_psnr']:.1f} dB with all patches",
                [
                    Pane(label, decode(row[name]))
                    for label, name in (
                        ("original", "picture"),
                        ("with the filter", "filtered_picture"),
                        ("all patches", "full_picture"),
                    )
                ],
            )
            for row in shown
        ],
    )


def _verdict(figures: list[Figure], rows: list[Row]) -> str:
    by_name = {figure.name: figure for figure in figures}
    filtered, full = (by_name[f"PSNR, {told}"] for told in VARIANTS.values())
    textbook = by_name.get(f"PSNR over {TEXTBOOK}")
    beside = f", and {textbook.value:+.2f} dB over {TEXTBOOK} at as many bits" if textbook is not None else ""
    return (
        f"{by_name['tokens'].value:.1f} tokens an image give {filtered.value:.2f} dB{beside}; all patches give "
        f"{full.value:.2f} dB (mean of {len(rows)} images)."
    )
