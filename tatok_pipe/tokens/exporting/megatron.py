"""Megatron's indexed datasets: a sequence of ids an image, in `.bin`, and where each begins, in `.idx`; one for each
token shard. The keys of its rows, a line of JSON each, lie beside it."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.exporting.base import Exported

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # which imports pyarrow, and options come before it

_MAGIC, _VERSION, _INT32 = b"MMIDIDX\x00\x00", 1, 4


class Megatron:
    name = "megatron"
    help = "Megatron's .bin and .idx (IndexedDataset), one vocabulary of codes, positions, end and classes"
    suffixes: tuple[str, ...] = (".keys.jsonl", ".bin", ".idx")

    def encode(self, records: Sequence[TokenRecord], spec: TokenSpec) -> tuple[bytes, ...]:
        sequences = [_sequence(record, spec) for record in records]
        lengths = np.array([len(each) for each in sequences], np.int32)
        begins = np.cumsum(np.concatenate([[0], lengths[:-1].astype(np.int64)])) * np.dtype(np.int32).itemsize
        documents = np.arange(len(sequences) + 1, dtype=np.int64)
        head = _MAGIC + struct.pack("<QBQQ", _VERSION, _INT32, len(lengths), len(documents))
        index = [lengths.astype("<i4"), begins[: len(lengths)].astype("<i8"), documents.astype("<i8")]
        keys = "".join(f"{json.dumps({'key': each.key, 'crop': int(each.crop)})}\n" for each in records)
        tokens = b"".join(each.astype("<i4").tobytes() for each in sequences)
        return keys.encode(), tokens, head + b"".join(each.tobytes() for each in index)

    def index(self, shards: Sequence[Exported], spec: TokenSpec) -> dict[str, bytes]:
        prefixes = "".join(f"{shard.file.removesuffix('.idx')}\n" for shard in shards)
        return {"prefixes.txt": prefixes.encode()}

    def vocabulary(self, spec: TokenSpec) -> dict[str, Any]:
        positions, patches, end = _begins(spec)
        return {
            "global_codes": 0,
            "patch_positions": positions,
            "patch_codes": patches,
            "end": end,
            "no_class": end + 1,
            "classes": end + 2,
        }


def _begins(spec: TokenSpec) -> tuple[int, int, int]:
    """The first id of positions, of patch codes, and the end's."""
    positions = spec.global_vocab
    patches = positions + spec.num_patches
    return positions, patches, patches + spec.patch_vocab


def _sequence(record: TokenRecord, spec: TokenSpec) -> np.ndarray:
    """class g_1 … g_K (position code)* end, (2 + K + 2M,) int64."""
    positions, patches, end = _begins(spec)
    label = -1 if record.label is None else int(record.label)
    pairs = np.stack(
        [record.patch_positions.astype(np.int64) + positions, record.patch_codes.astype(np.int64) + patches],
        axis=1,
    )
    return np.concatenate([[end + 2 + label], record.global_codes.astype(np.int64), pairs.ravel(), [end]])
