"""Padded training, as a script would write it, on any device: the other side of packed rows.

Batches of sequences, each as long as the longest there is, dense causal attention, logits at every position, padding
ignored in the loss. The same weights give the same nats.

Letters: B sequences of L elements with their padding.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.model import Generator
from tatok_pipe.nn.blocks import attend
from tatok_pipe.tokens.loading.batches import Sequences

_IGNORED = -100  # cross_entropy's


class PaddedBatch:
    """The sequences from `start` to `stop`, (B, L) of each field."""

    def __init__(
        self, sequences: Sequences, start: int, stop: int, *, length: int, end: int, device: torch.device
    ) -> None:
        """`end`: what the position head calls the end of a sequence."""
        count, num_globals = stop - start, sequences.global_codes.shape[1]
        first = np.concatenate([[0], np.cumsum(sequences.num_patches)])
        codes = np.zeros((count, length), np.int64)
        places = np.full((count, length), -1)
        next_codes, next_places = (np.full((count, length), _IGNORED) for _ in range(2))
        for row, number in enumerate(range(start, stop)):
            own = slice(first[number], first[number + 1])
            last = num_globals + int(sequences.num_patches[number])  # index of its last element
            codes[row, 1 : 1 + num_globals] = sequences.global_codes[number]
            codes[row, 1 + num_globals : last + 1] = sequences.patch_codes[own]
            places[row, 1 + num_globals : last + 1] = sequences.patch_positions[own]
            next_codes[row, :last] = codes[row, 1 : last + 1]
            next_places[row, num_globals:last] = places[row, 1 + num_globals : last + 1]
            next_places[row, last] = end

        def move(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        self.labels = move(sequences.labels[start:stop])
        self.codes, self.places = move(codes), move(places)
        self.next_codes, self.next_places = move(next_codes), move(next_places)


def padded_nats(model: Generator, batch: PaddedBatch) -> Tensor:
    """The sum of all nats of a batch."""
    count, length = batch.codes.shape
    device = batch.codes.device
    num_globals, num_patches = model.vocabulary.num_globals, model.vocabulary.num_patches
    patches = model.embed_patch(batch.codes, batch.places.clamp(min=0))
    x = torch.where((batch.places >= 0)[..., None], patches, 0)
    x[:, 0] = model.embed_condition(
        batch.labels, torch.ones_like(batch.labels, dtype=torch.bool), torch.full_like(batch.labels, -1)
    )
    x[:, 1 : 1 + num_globals] = model.embed_global(
        batch.codes[:, 1 : 1 + num_globals], torch.arange(num_globals, device=device).expand(count, -1)
    )
    spots = torch.arange(length, device=device).expand(count, -1)
    spots = torch.where(batch.places >= 0, 1 + num_globals + batch.places, spots)
    rotary = model.rotary[spots.flatten()]
    dense = partial(_attend_padded, count=count)
    x = x.flatten(0, 1)
    for block in model.blocks:
        x = block(x, rotary, dense)
    x = model.norm(x).unflatten(0, (count, length))
    nats = _nats(model.global_logits(x[:, :num_globals]), batch.next_codes[:, :num_globals])
    tail, next_places = x[:, num_globals:], batch.next_places[:, num_globals:]
    nats = nats + _nats(model.position_logits(tail, batch.places[:, num_globals:]), next_places)
    logits = model.code_logits(tail, next_places.clamp(min=0, max=num_patches - 1))
    return nats + _nats(logits, batch.next_codes[:, num_globals:])


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, *, count: int) -> Tensor:
    """(B · L, H, D) each; padding comes last, so that no element that counts sees it."""
    heads = (each.unflatten(0, (count, -1)).transpose(1, 2) for each in (query, key, value))
    return attend(*heads, causal=True).transpose(1, 2).flatten(0, 1)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
    )
