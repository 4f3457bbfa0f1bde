"""What the entropy model knows, and what globals tell: mutual information, calibration, the bound of DTF, shuffled
globals, entropy maps.

Letters: B images, S image size in pixels, N patches, K globals.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.bench import Bench
from tatok_pipe.evaluation.findings import Findings
from tatok_pipe.evaluation.metrics import psnr
from tatok_pipe.evaluation.pictures import Picture
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites.base import PictureSuite, Row, image_table
from tatok_pipe.evaluation.suites.information.reliability import grid_sums
from tatok_pipe.evaluation.suites.information.summary import BOUNDS, NUM_SHOWN, VARIANTS, Summary, bound_name
from tatok_pipe.tokenizer.calibration import Ladders
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.encoded import Encoded
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats


class Information(PictureSuite):
    """Two readings of what globals tell about patches, nats an image, both sums over the patches:

    - Î(G;P) = H(z_i|z_<i) - H(z_i|G,z_<i) (arXiv 2605.16384): by the model's own entropies, hence what it *believes*.
      A difference of two estimates, it bounds I(G;P) in neither direction, and may be below 0.
    - gain by surprisals = log p(z_i|G,z_<i) - log p(z_i|z_<i): its mean estimates without bias how many nats a code
      of the patches by this model gets shorter by globals, calibrated or not. One image may lose by chance.
    """

    name = "information"

    def measure(self, part: str, bench: Bench) -> list[Row]:
        model, rows = bench.tokenizer.model, []
        filters = bound_filters(bench.tokenizer.ladders, num_patches=model.config.num_patches)
        sums = np.zeros_like(grid_sums(np.zeros(1), np.zeros(1)))
        previous: Tensor | None = None  # globals of the image before this batch
        for pictures, images in self.batches(part, bench):
            with torch.no_grad():
                encoded = model.encode(images)
                own, codes = encoded.globals.codes, encoded.patches.codes
                logits = model.predict(own, codes).patch_logits
                entropy, surprisal = entropy_nats(logits), surprisal_nats(logits, codes)
                hidden = torch.ones(len(images), dtype=torch.bool, device=images.device)
                logits = model.predict(own, codes, without_globals=hidden).patch_logits
                alone_entropy, alone_surprisal = entropy_nats(logits), surprisal_nats(logits, codes)
                cost = model.cost(bench.plan.filter.score, images, encoded, entropy=entropy)
                keep = keep_mask(cost, bench.plan.filter)
            totals = {
                "entropy_nats": entropy,
                "surprisal_nats": surprisal,
                "alone_entropy_nats": alone_entropy,
                "alone_surprisal_nats": alone_surprisal,
            }
            totals = {name: values.double().sum(1) for name, values in totals.items()}
            totals["information_nats"] = totals["alone_entropy_nats"] - totals["entropy_nats"]
            totals["gain_nats"] = totals["alone_surprisal_nats"] - totals["surprisal_nats"]
            totals |= measure_dropped(entropy, surprisal, filters)
            # Each image gets the globals of the one before it, the first of a part those of the last of its batch.
            others = torch.cat([own[-1:] if previous is None else previous, own[:-1]])
            shuffled: dict[str, list[float] | None] = dict.fromkeys(_SHUFFLED)
            if previous is not None or len(images) > 1:  # else it is alone
                shuffled = _shuffle(model, images, encoded, others=others, keep=keep)
            previous = own[-1:]
            sums += grid_sums(entropy.cpu().numpy(), surprisal.cpu().numpy())
            for place, picture in enumerate(pictures):
                row: Row = {"key": picture.key, "kind": picture.kind}
                row |= {name: values[place].item() for name, values in totals.items()}
                row |= {name: values and values[place] for name, values in shuffled.items()}
                row |= _picture(picture, entropy[place], cost[place], keep[place], place=len(rows))
                rows.append(row | {"grid": None})
        if rows:
            rows[0]["grid"] = sums.ravel()
        return rows

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        summary = Summary(rows, plan)
        columns = [
            name for name in rows[0] if name not in (*_PICTURE, "grid") and not name.endswith("_value")
        ]
        return Findings(
            self.name,
            f"Information in {len(rows)} images",
            verdicts=summary.verdicts,
            figures=summary.figures,
            tables=summary.tables,
            plots=summary.plots,
            galleries=[summary.gallery()],
            images=image_table(rows, columns),
        )


_SHUFFLED = (
    *(f"{variant}_{whose}_psnr" for variant in VARIANTS for whose in ("own", "other")),
    "other_surprisal_nats",
)
_PICTURE = ("place", "picture", "patch_entropy", "patch_cost", "patch_keep")


def bound_filters(ladders: Ladders, *, num_patches: int) -> dict[str, Filter]:
    """By `bound_name`: filters on entropy, with the value of the checkpoint's rung next to each share of the patches.
    No patch is kept for the sake of a minimum, which would take the whole image to decide."""
    filters = {}
    for rule, share in BOUNDS:
        ladder = ladders.get("entropy", {}).get(rule)
        if not ladder:
            raise UserError(
                f"suite=information: the tokenizer is not calibrated for {rule} on entropy; tatok_pipe.calibrate does "
                "that, or leave the suite out"
            )
        rung = min(ladder, key=lambda rung: abs(rung[0] - share * num_patches))
        filters[bound_name(rule, share)] = Filter(rule, rung[1], score="entropy", min_patches=0)
    return filters


def measure_dropped(entropy: Tensor, surprisal: Tensor, filters: dict[str, Filter]) -> dict[str, Tensor]:
    """What each filter drops, by the model's entropies and as measured, nats; (B, N) to (B,) each."""
    found = {}
    num_patches = entropy.shape[1]
    for name, filter in filters.items():
        keep = keep_mask(entropy, filter)
        kept = keep.sum(1)
        found |= {
            f"{name}_value": torch.full_like(kept, filter.value, dtype=torch.float64),
            f"{name}_kept": kept,
            f"{name}_dropped_nats": (entropy.double() * ~keep).sum(1),
            f"{name}_measured_nats": (surprisal.double() * ~keep).sum(1),
            f"{name}_mask_bits": torch.tensor([math.log2(math.comb(num_patches, k)) for k in kept.tolist()]),
        }
    return found


@torch.no_grad()
def _shuffle(
    model: TaTok, images: Tensor, encoded: Encoded, *, others: Tensor, keep: Tensor
) -> dict[str, list[float] | None]:
    """Quality (dB) with the images' own globals and with `others` (B, K), by what is kept of the patches, and
    surprisal of the patch codes under the others, nats an image."""
    own, codes = encoded.globals.codes, encoded.patches.codes
    everything = torch.ones_like(keep)
    masks = {"full": everything, "filtered": keep, "none": ~everything}
    found: dict[str, list[float] | None] = {
        f"{variant}_{whose}_psnr": psnr(model.decode(source, codes, masks[variant]), images).tolist()
        for variant in VARIANTS
        for whose, source in (("own", own), ("other", others))
    }
    logits = model.predict(others, codes).patch_logits
    found["other_surprisal_nats"] = surprisal_nats(logits, codes).double().sum(1).tolist()
    return found


def _picture(picture: Picture, entropy: Tensor, cost: Tensor, keep: Tensor, *, place: int) -> Row:
    """What the gallery shows of the first images of a part; `place` is that in the part."""
    if place >= NUM_SHOWN:
        return dict.fromkeys(_PICTURE)
    return {
        "place": place,
        "picture": picture.pixels.tobytes(),
        "patch_entropy": entropy.cpu().numpy(),
        "patch_cost": cost.cpu().numpy(),
        "patch_keep": keep.cpu().numpy().astype(np.float32),
    }
