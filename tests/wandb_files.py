"""What a run of Weights & Biases has told, read from its .wandb file."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

_BLOCK_BYTES = 32_768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> list[Any]:
    """A log as LevelDB writes it: blocks of fragments with checksum, length and kind, behind a header of W&B's."""
    data, at = path.read_bytes(), 7
    assert data[:4] == b":W&B"
    records, parts = [], b""
    while at < len(data):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        content = data[at + 7 : at + 7 + length]
        assert zlib.crc32(content, zlib.crc32(bytes([kind]))) == checksum
        parts = content if kind in (_FULL, _FIRST) else parts + content
        if kind in (_FULL, _LAST):
            records.append(Record.FromString(parts))
        at += 7 + length
    return records


def read_history(path: Path) -> dict[int, dict[str, Any]]:
    """What was told, by step; steps rise."""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in each.history.item}
        for each in read_records(path)
        if each.HasField("history")
    ]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    return {row.pop("_step"): {key: value for key, value in row.items() if key[0] != "_"} for row in rows}


def read_config(path: Path) -> dict[str, Any]:
    updates = [item for each in read_records(path) for item in each.run.config.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
