"""LitData's chunks of rows (PyTreeLoader), not compressed, and `index.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.exporting.base import Exported, columns_of, encode_sample, join_samples

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # which imports pyarrow, and options come before it

_COLUMNS = {
    "key": "str", "label": "int", "crop": "int", "global_codes": "bytes", "patch_codes": "bytes",
    "patch_positions": "bytes",
}  # fmt: skip


class LitData:
    name = "litdata"
    help = "Lightning LitData's chunks (StreamingDataset)"
    suffixes: tuple[str, ...] = (".bin",)

    def encode(self, records: Sequence[TokenRecord], spec: TokenSpec) -> tuple[bytes, ...]:
        return (
            join_samples([encode_sample(columns_of(record, spec), with_size=_COLUMNS) for record in records]),
        )

    def index(self, shards: Sequence[Exported], spec: TokenSpec) -> dict[str, bytes]:
        chunks = [
            {
                "chunk_bytes": shard.size_bytes, "chunk_size": shard.num_rows, "dim": None, "filename": shard.file
            }
            for shard in shards
        ]  # fmt: skip
        config = {
            "chunk_bytes": max((shard.size_bytes for shard in shards), default=0),
            "chunk_size": None,
            "compression": None,
            "data_format": list(_COLUMNS.values()),
            "data_spec": _tree(),
            "encryption": None,
            "item_loader": "PyTreeLoader",
        }
        return {"index.json": json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode()}

    def vocabulary(self, spec: TokenSpec) -> dict[str, Any]:
        return {}


def _tree() -> str:
    """A dict of leaves, as torch.utils._pytree.treespec_dumps writes it."""
    leaf = {"type": None, "context": None, "children_spec": []}
    context = json.dumps(list(_COLUMNS))
    return json.dumps(
        [1, {"type": "builtins.dict", "context": context, "children_spec": [leaf] * len(_COLUMNS)}]
    )
