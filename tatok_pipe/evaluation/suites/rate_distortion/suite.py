"""How quality falls with rate, by every score and control, and whether one threshold serves all kinds of images.

Letters: B images, K globals, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Findings
from tatok_pipe.evaluation.metrics import psnr
from tatok_pipe.evaluation.pictures import Picture, to_images
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.probes import PROBES, probe_pictures
from tatok_pipe.evaluation.suites.base import PictureSuite, Row, code_bits, image_table, textbook_rows
from tatok_pipe.evaluation.suites.rate_distortion.rate_curves import (
    CURVES,
    SWEEPS,
    Curves,
    cell,
    keep_counts,
    perceptual_counts,
)
from tatok_pipe.evaluation.suites.rate_distortion.threshold_stability import Stability
from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokenizer.analysis import analyse, decode
from tatok_pipe.tokenizer.dtf import Filter, interpolate, keep_mask

NUM_PROBE_IMAGES = 16  # of each kind
_ARRAYS = ("is_probe", "costs", "textbook_coarse", "textbook_gain")  # no columns of the table of images
_PROBE = "probe-"  # before the kind, in the name of a part


class RateDistortion(PictureSuite):
    name = "rate_distortion"

    def parts(self, plan: EvaluationPlan) -> list[str]:
        return super().parts(plan) + [f"{_PROBE}{kind}" for kind in PROBES]

    def measure(self, part: str, bench: Bench) -> list[Row]:
        """Rows of the data's images hold their curves; those of probes only what the plan's filter makes of them."""
        if part.startswith(_PROBE):
            return _measure_probes(part.removeprefix(_PROBE), bench)
        # Drawn image by image, so that an image's patches do not depend on the batch that it is in.
        chance = torch.Generator().manual_seed(hash_seed(bench.plan.seed, int(part)))
        num_patches = bench.tokenizer.model.config.num_patches
        rows: list[Row] = []
        for pictures, images in self.batches(part, bench):
            random = torch.stack([torch.rand(num_patches, generator=chance) for _ in pictures])
            rows += _measure_batch(pictures, images, random.to(images.device), bench)
        return rows

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        data = [row for row in rows if not row["is_probe"]]
        if not data:
            raise UserError(
                f"data={storage.redact(plan.data)}: none of its images can be decoded; give image shards with JPEG or "
                "PNG images"
            )
        curves, stability = Curves(data, plan), Stability(rows, plan)
        columns = [name for name in data[0] if name not in _ARRAYS]
        return Findings(
            self.name,
            f"Rate and distortion of {len(data)} images",
            verdicts=[*curves.verdicts(), stability.verdict()],
            figures=[*curves.figures(), *stability.figures()],
            tables=[*curves.tables(), stability.table()],
            plots=[*curves.plots(), stability.plot()],
            images=image_table(data, columns),
        )


def _measure_batch(pictures: Sequence[Picture], images: Tensor, random: Tensor, bench: Bench) -> list[Row]:
    """`random` (B, N) are the costs of the random control."""
    model, plan = bench.tokenizer.model, bench.plan
    num_patches = model.config.num_patches
    found = analyse(model, images)
    costs = found.costs | {"random": random}
    rows, put = _begin(pictures, bench, is_probe=False)
    for row, beside in zip(rows, textbook_rows(images, bench), strict=True):
        row |= beside

    def measure(keep: Tensor, place: str, *, with_perceptual: bool) -> None:
        decoded = decode(model, found, keep)
        put(cell("psnr", place), psnr(decoded, images))
        if with_perceptual:
            put(cell("perceptual", place), bench.perceptual(decoded, images))
        bench.touch(0)

    everything = torch.ones_like(found.patch_codes, dtype=torch.bool)
    for place, keep in (("none", everything), ("globals", ~everything)):
        measure(keep, place, with_perceptual=True)
        put(cell("bits", place), code_bits(keep.sum(1), bench=bench))
    for count in keep_counts(num_patches):
        put(cell("bits", "top_k", count), code_bits(torch.full((len(pictures),), count), bench=bench))
        for name in CURVES:
            keep = keep_mask(costs[name], Filter("top_k", count))
            measure(keep, f"top_k {name} {count}", with_perceptual=count in perceptual_counts(num_patches))
        for rule, score in SWEEPS:
            if not (ladder := bench.tokenizer.ladders.get(score, {}).get(rule)):
                continue
            value = _value(ladder, count)
            keep = keep_mask(costs[score], Filter(rule, value, score, plan.filter.min_patches))
            place = f"{rule} {score} {count}"
            measure(keep, place, with_perceptual=False)
            put(cell("kept", place), keep.sum(1))
            put(cell("bits", place), code_bits(keep.sum(1), bench=bench))
            put(cell("value", place), torch.full((len(pictures),), value, dtype=torch.float64))
    keep = keep_mask(costs[plan.filter.score], plan.filter)
    _put_filtered(put, decode(model, found, keep), images, keep, costs[plan.filter.score])
    return rows


@torch.no_grad()
def _measure_probes(kind: str, bench: Bench) -> list[Row]:
    model, plan = bench.tokenizer.model, bench.plan
    pictures = probe_pictures(kind, image_size=plan.image_size, num_images=NUM_PROBE_IMAGES, seed=plan.seed)
    images = to_images(pictures, bench.device)
    tokens = model.tokenize(images, plan.filter)
    rows, put = _begin(pictures, bench, is_probe=True)
    decoded = model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep)
    _put_filtered(put, decoded, images, tokens.keep, tokens.cost)
    bench.touch(len(pictures))
    return rows


Put = Callable[[str, Tensor], None]


def _begin(pictures: Sequence[Picture], bench: Bench, *, is_probe: bool) -> tuple[list[Row], Put]:
    """Rows of a batch, and how a column is put into them: values (B,) or (B, D)."""
    config = bench.tokenizer.model.config
    rows: list[Row] = [
        {
            "key": picture.key,
            "kind": picture.kind,
            "is_probe": is_probe,
            "num_globals": config.num_globals,
            "num_patches": config.num_patches,
        }
        for picture in pictures
    ]

    def put(name: str, values: Tensor) -> None:
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value

    return rows, put


def _put_filtered(put: Put, decoded: Tensor, images: Tensor, keep: Tensor, cost: Tensor) -> None:
    put("psnr filter", psnr(decoded, images))
    put("kept filter", keep.sum(1))
    put("costs", cost)


def _value(ladder: list[list[float]], count: int) -> float:
    """What the checkpoint's calibration holds for a mean of `count` patches; where the costs of its training images
    were too much alike to reach that, the end of its ladder."""
    reach = [kept for kept, _ in ladder]
    return interpolate(ladder, min(max(float(count), min(reach)), max(reach)))
