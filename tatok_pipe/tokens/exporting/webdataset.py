"""WebDataset tars: a sample a row, arrays as .npy."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.exporting.base import Exported, code_dtype

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # which imports pyarrow, and options come before it


class WebDataset:
    name = "webdataset"
    help = "WebDataset tars"
    suffixes: tuple[str, ...] = (".tar",)

    def encode(self, records: Sequence[TokenRecord], spec: TokenSpec) -> tuple[bytes, ...]:
        from webdataset.writer import TarWriter  # here, as it imports torch

        sink = io.BytesIO()
        with TarWriter(sink, encoder=False, mtime=0) as writer:
            for number, record in enumerate(records):
                writer.write({"__key__": f"{number:08}", **_members(record, spec)})
        return (sink.getvalue(),)

    def index(self, shards: Sequence[Exported], spec: TokenSpec) -> dict[str, bytes]:
        return {"shards.txt": "".join(f"{shard.file}\n" for shard in shards).encode()}

    def vocabulary(self, spec: TokenSpec) -> dict[str, Any]:
        return {}


def _members(record: TokenRecord, spec: TokenSpec) -> dict[str, bytes]:
    meta = {"key": record.key, "crop": int(record.crop), "width": record.width, "height": record.height}
    if record.caption is not None:
        meta["caption"] = record.caption
    label = {} if record.label is None else {"cls": str(int(record.label)).encode()}
    return {
        "global_codes.npy": _to_npy(record.global_codes, code_dtype(spec.global_vocab)),
        "patch_codes.npy": _to_npy(record.patch_codes, code_dtype(spec.patch_vocab)),
        "patch_positions.npy": _to_npy(record.patch_positions, "<u2"),
        "json": json.dumps(meta, ensure_ascii=False, sort_keys=True).encode(),
        **label,
    }


def _to_npy(values: np.ndarray, dtype: str) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.asarray(values).astype(dtype))
    return sink.getvalue()
