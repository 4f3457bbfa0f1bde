"""The generator's loss in its parts: by what was predicted, and by how many tokens an image has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tatok_pipe.ar.batch import BatchTensors, Vocabulary
from tatok_pipe.ar.model import Nats
from tatok_pipe.records import Kind

NUM_BUCKETS = 4  # of images, by the share of their patches that is kept
_PARTS = ("global", "position", "patch")


@dataclass(frozen=True)
class LossParts:
    """Sums over sequences: nats and how many things were predicted, by part and by length bucket.

    One vector, so that it is added over processes in one exchange: nats of the three parts, their counts, sequences,
    then nats, codes and sequences of the buckets.
    """

    vocabulary: Vocabulary
    sums: Tensor  # (7 + 3 · NUM_BUCKETS,) float64

    @classmethod
    def zeros(cls, vocabulary: Vocabulary, *, device: torch.device | str = "cpu") -> LossParts:
        return cls(vocabulary, torch.zeros(7 + 3 * NUM_BUCKETS, dtype=torch.float64, device=device))

    @torch.no_grad()
    def add(self, batch: BatchTensors, nats: Nats) -> None:
        """Count the elements of a batch; in place."""
        position, code = nats.position.detach().double(), nats.code.detach().double()  # (T,)
        kinds = batch.kinds
        following = torch.roll(
            kinds, -1
        )  # what an element predicts, where the next one is of the same sequence
        predicts_global = (kinds != Kind.PADDING) & (
            following == Kind.GLOBAL
        )  # not the last one: conditions come first
        is_global, is_patch = kinds == Kind.GLOBAL, kinds == Kind.PATCH
        is_sequence = kinds == Kind.CONDITION
        zero = torch.zeros_like(code)
        num_sequences = is_sequence.sum().double()
        num_globals, num_patches = is_global.sum().double(), is_patch.sum().double()
        self.sums[:7] += torch.stack(
            [
                torch.where(predicts_global, code, zero).sum(),
                position.sum(),
                torch.where(predicts_global, zero, code).sum(),
                num_globals,
                num_patches + num_sequences,  # a position for every patch, and an end for every sequence
                num_patches,
                num_sequences,
            ]
        )
        elements = torch.arange(len(kinds), device=kinds.device)
        stretch = torch.searchsorted(batch.boundaries, elements, right=True) - 1  # (T,)
        lengths = batch.boundaries.diff()[stretch]  # (T,)
        kept = (lengths - 1 - self.vocabulary.num_globals).clamp(min=0)
        bucket = (kept * NUM_BUCKETS // (self.vocabulary.num_patches + 1)).clamp(max=NUM_BUCKETS - 1).long()
        by_bucket = self.sums[7:].view(3, NUM_BUCKETS)
        for row, values in zip(by_bucket, (position + code, is_global | is_patch, is_sequence), strict=True):
            row.index_add_(0, bucket, values.double())

    def summed_over_processes(self) -> LossParts:
        """The sums over all processes, where there are several."""
        sums = self.sums.clone()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        return LossParts(self.vocabulary, sums)

    def figures(self) -> dict[str, float]:
        """Means. `loss`: nats per code, all of an image's nats over its codes; `nats_per_image`, `bits_per_image`;
        `<part>_nats`: per prediction of that part; `kept_<from>_<to>_nats`: `loss` of the images that keep such a
        share of their patches, in percent. What was not seen is left out."""
        sums = self.sums.tolist()
        parts, counts, num_sequences, buckets = sums[:3], sums[3:6], sums[6], sums[7:]
        num_codes = counts[0] + counts[2]
        figures: dict[str, float] = {}
        if num_sequences:
            figures["loss"] = sum(parts) / num_codes
            figures["nats_per_image"] = sum(parts) / num_sequences
            figures["bits_per_image"] = figures["nats_per_image"] / math.log(2)
        for name, nats, count in zip(_PARTS, parts, counts, strict=True):
            if count:
                figures[f"{name}_nats"] = nats / count
        for number in range(NUM_BUCKETS):
            nats, codes = buckets[number], buckets[NUM_BUCKETS + number]
            low, high = (100 * edge // NUM_BUCKETS for edge in (number, number + 1))
            if codes:
                figures[f"kept_{low}_{high}_nats"] = nats / codes
        return figures

    @property
    def num_codes(self) -> int:
        return int(self.sums[3] + self.sums[5])

    @property
    def num_sequences(self) -> int:
        return int(self.sums[6])
