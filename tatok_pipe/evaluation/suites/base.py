"""What a suite is, and what several of them share.

Letters: B images, N patches, K globals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.evaluation.bench import BATCH_IMAGES, Bench
from tatok_pipe.evaluation.findings import Cell, Findings, Table
from tatok_pipe.evaluation.pictures import Picture, read_pictures, to_images
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.textbook import TextbookErrors, load_textbook, position_bits

TEXTBOOK = "a textbook without a network"
TEXTBOOK_NOTE = (
    "The textbook is k-means alone: 16 mean colours and one codeword for each patch of 8 px, kept where it lowers the "
    "error most by one threshold for all images, at the same bits on average, saying which patches are kept included."
)

_LEAST_SHARE_OF_BITS = 0.99  # that still passes for as many

Row = dict[str, Any]  # by column: str, int, float, bool, bytes (a picture), or a 1-D array of floats


class Suite(Protocol):
    """Rows go through a Parquet file, so a column has one type in all rows of a part; what is not there is None."""

    name: str

    def missing(self, plan: EvaluationPlan) -> str:
        """What this suite still has to be given, in one sentence for the user; empty where it can run."""
        ...

    def parts(self, plan: EvaluationPlan) -> list[str]:
        """Names of the parts, each small enough to be lost: letters, digits and dashes. Not empty."""
        ...

    def measure(self, part: str, bench: Bench) -> list[Row]:
        """The rows of a part: a function of the plan and the part alone. Calls `bench.touch` now and then."""
        ...

    def summarise(self, rows: list[Row], plan: EvaluationPlan) -> Findings:
        """From the rows of all parts, in the order of the parts."""
        ...


class PictureSuite:
    """The part of a suite that goes through the images of the plan: a part is a shard's."""

    def missing(self, plan: EvaluationPlan) -> str:
        return "" if plan.sources else "data=, image shards to evaluate on"

    def parts(self, plan: EvaluationPlan) -> list[str]:
        return [f"{place:06d}" for place in range(len(plan.sources))]

    def batches(self, part: str, bench: Bench) -> Iterator[tuple[list[Picture], Tensor]]:
        """Pictures and their images (B, 3, S, S) on the device, in order. A sign of life after each."""
        pictures = read_pictures(bench.plan.sources[int(part)], image_size=bench.plan.image_size)
        for start in range(0, len(pictures), BATCH_IMAGES):
            batch = pictures[start : start + BATCH_IMAGES]
            yield batch, to_images(batch, bench.device)
            bench.touch(len(batch))


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """A column of numbers, (M,) float64, or of arrays, (M, D) float32."""
    values = [row[name] for row in rows]
    if values and isinstance(values[0], (list, np.ndarray)):
        return np.stack([np.asarray(value, np.float32) for value in values])
    return np.array([math.nan if value is None else value for value in values], np.float64)


def image_table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """The values of each image, for the CSV file."""
    cells: list[list[Cell]] = [[row[name] for name in columns] for row in rows]
    return Table("images", "Images", list(columns), cells)


def code_bits(num_kept: Tensor, *, bench: Bench) -> Tensor:
    """Bits of an image as codes of fixed length: its globals, its kept patches, and which those are (log2 of the
    number of choices): num_kept (B,) to (B,) float64."""
    model = bench.tokenizer.model
    kept = num_kept.double().cpu()
    fixed = model.config.num_globals * math.log2(model.global_quantizer.vocab_size)
    each = math.log2(model.patch_quantizer.vocab_size)
    return fixed + kept * each + position_bits(kept, model.config.num_patches)


def textbook_rows(images: Tensor, bench: Bench) -> list[Row]:
    """What `textbook_quality` needs to know of images (B, 3, S, S): the errors of their patches."""
    textbook = bench.textbook
    if not textbook.fits(bench.plan.image_size):
        return [{} for _ in images]
    found = textbook.errors(images)
    return [
        {"textbook_coarse": coarse.cpu().numpy(), "textbook_gain": gain.cpu().numpy()}
        for coarse, gain in zip(found.coarse.float(), found.gain.float(), strict=True)
    ]


def textbook_quality(rows: Sequence[Row], mean_bits: float) -> np.ndarray | None:
    """PSNR of each image, (M,) dB, of the textbook codec at as many bits on average; None where its patches do not fit
    the size of the images, or all of them together take fewer bits."""
    if "textbook_gain" not in rows[0] or rows[0]["textbook_gain"] is None:
        return None
    coarse, gain = (
        torch.from_numpy(column(rows, f"textbook_{name}")).double() for name in ("coarse", "gain")
    )
    textbook, num_patches = load_textbook(), gain.shape[1]
    most = textbook.bits(torch.tensor([num_patches]), num_patches).item()
    if most < _LEAST_SHARE_OF_BITS * mean_bits:
        return None
    return textbook.quality_at(TextbookErrors(coarse, gain), mean_bits).psnr.numpy()
