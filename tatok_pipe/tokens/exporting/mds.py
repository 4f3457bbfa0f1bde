"""MosaicML Streaming's MDS, version 2: files of samples by their places, and `index.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.exporting.base import Exported, columns_of, encode_sample, join_samples

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # which imports pyarrow, and options come before it

# By name, with how many bytes a value has; null where that is written before it. In the order of names, as its writer.
_COLUMNS = {
    "crop": ("int", 8), "global_codes": ("bytes", None), "key": ("str", None), "label": ("int", 8),
    "patch_codes": ("bytes", None), "patch_positions": ("bytes", None),
}  # fmt: skip
_SIZED = [name for name, (_, size) in _COLUMNS.items() if size is None]


class Mds:
    name = "mds"
    help = "MosaicML Streaming's shards (StreamingDataset)"
    suffixes: tuple[str, ...] = (".mds",)

    def encode(self, records: Sequence[TokenRecord], spec: TokenSpec) -> tuple[bytes, ...]:
        head = json.dumps(_config(), sort_keys=True).encode()
        return (
            join_samples(
                [encode_sample(_in_order(columns_of(record, spec)), with_size=_SIZED) for record in records],
                head,
            ),
        )

    def index(self, shards: Sequence[Exported], spec: TokenSpec) -> dict[str, bytes]:
        found = [
            {
                **_config(),
                "raw_data": {"basename": shard.file, "bytes": shard.size_bytes, "hashes": {}},
                "samples": shard.num_rows,
                "zip_data": None,
            }
            for shard in shards
        ]
        return {"index.json": json.dumps({"shards": found, "version": 2}, sort_keys=True).encode()}

    def vocabulary(self, spec: TokenSpec) -> dict[str, Any]:
        return {}


def _config() -> dict[str, Any]:
    return {
        "column_encodings": [encoding for encoding, _ in _COLUMNS.values()],
        "column_names": list(_COLUMNS),
        "column_sizes": [size for _, size in _COLUMNS.values()],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }


def _in_order(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _COLUMNS}
