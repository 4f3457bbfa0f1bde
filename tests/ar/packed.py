"""Packed batches written out element by element, and the sequences of a small generator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import numpy as np
import torch

from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.records import Kind, PackedBatch

VOCABULARY = Vocabulary(num_globals=2, num_patches=9, global_vocab=5, patch_vocab=7)
SMALL = GeneratorConfig(width=32, depth=2, heads=2, num_classes=4)


@dataclass(frozen=True)
class Tokens:
    """One sequence: codes of all globals, then position and code of each patch."""

    globals: list[int]
    patches: list[tuple[int, int]]
    label: int = 0
    is_conditional: bool = True
    has_budget: bool = False
    embedding: list[float] | None = None


def pack(rows: Sequences[Sequences[Tokens]], *, row_tokens: int) -> PackedBatch:
    """Sequences of each row, one after the other, padded to `row_tokens`."""
    elements: list[tuple[int, int, int, int]] = []  # kind, code, place, order
    starts = []
    for number, row in enumerate(rows):
        for tokens in row:
            starts.append(len(elements))
            sequence = [(Kind.CONDITION, 0, 0)]
            sequence += [(Kind.GLOBAL, code, slot) for slot, code in enumerate(tokens.globals)]
            sequence += [(Kind.PATCH, code, position) for position, code in tokens.patches]
            elements += [(*each, order) for order, each in enumerate(sequence)]
        missing = (number + 1) * row_tokens - len(elements)
        assert missing >= 0, f"row {number} has {-missing} elements too many"
        if missing:
            starts.append(len(elements))
            elements += [(Kind.PADDING, 0, 0, order) for order in range(missing)]
    kinds, codes, places, order = np.array(elements, np.int32).reshape(-1, 4).T
    sequences = [tokens for row in rows for tokens in row]
    embeddings = [tokens.embedding for tokens in sequences if tokens.embedding is not None]
    return PackedBatch(
        num_rows=len(rows),
        kinds=kinds.astype(np.uint8),
        codes=codes,
        places=places,
        order=order,
        boundaries=np.array([*starts, len(elements)], np.int32),
        labels=np.array([tokens.label for tokens in sequences], np.int32),
        is_conditional=np.array([tokens.is_conditional for tokens in sequences], np.bool_),
        has_budget=np.array([tokens.has_budget for tokens in sequences], np.bool_),
        embeddings=np.array(embeddings, np.float32) if embeddings else None,
        sequences=np.arange(len(sequences)),
    )


def tensors(rows: Sequences[Sequences[Tokens]], *, row_tokens: int) -> BatchTensors:
    return to_tensors(pack(rows, row_tokens=row_tokens), "cpu", vocabulary=VOCABULARY)


def draw(count: int, *, seed: int = 0) -> list[Tokens]:
    """Random sequences of `VOCABULARY`; the first keeps no patch, the second all of them."""
    random = np.random.default_rng(seed)
    drawn = []
    for number in range(count):
        kept = {0: 0, 1: 9}.get(number, int(random.integers(0, 10)))
        positions = sorted(random.choice(9, kept, replace=False).tolist())
        drawn.append(
            Tokens(
                globals=random.integers(0, 5, 2).tolist(),
                patches=[(position, int(random.integers(0, 7))) for position in positions],
                label=int(random.integers(0, 4)),
                is_conditional=number % 3 != 2,
                has_budget=number % 2 == 0,
                embedding=random.normal(size=6).tolist(),
            )
        )
    return drawn


def every_sequence() -> list[Tokens]:
    """All sequences of one global with 2 codes and 3 places with 2 codes each."""
    return [
        Tokens([code], list(zip(kept, codes, strict=True)))
        for code in range(2)
        for count in range(4)
        for kept in itertools.combinations(range(3), count)
        for codes in itertools.product(range(2), repeat=count)
    ]


def widen(model: Generator) -> Generator:
    """Weights of the size that training gives them: at initialisation every prediction is close to uniform, and
    tests of what depends on what would see too little."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model
