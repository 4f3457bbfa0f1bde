"""Token rows by litData, as its guide has them: `optimize` writes the rows that a file of arrays has, and a
StreamingDataset reads them shuffled, in batches padded to their longest row.

A program that needs litdata alone, for a Python that has it: `litdata_loader.py write ROWS.npz FOLDER`, then
`litdata_loader.py read FOLDER`, which prints tokens per second and the most memory that the process had.
"""

from __future__ import annotations

import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import litdata  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

EPOCHS = 2  # timed, after another one
BATCH = 64
END_ID = 1 << 20


def write(path: str, folder: str) -> None:
    arrays = {name: np.load(path)[name] for name in ("ids", "positions", "starts")}
    numbers = list(range(len(arrays["starts"]) - 1))
    cut = partial(cut_row, arrays=arrays)
    litdata.optimize(fn=cut, inputs=numbers, output_dir=folder, chunk_bytes="64MB", num_workers=1)


def cut_row(number: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    begin, stop = arrays["starts"][number : number + 2]
    return {"ids": arrays["ids"][begin:stop], "positions": arrays["positions"][begin:stop]}


def collate(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, targets, positions), (B, T) int64 each."""
    ids = [torch.as_tensor(row["ids"]) for row in rows]
    positions = [torch.as_tensor(row["positions"]) for row in rows]
    end = torch.tensor([END_ID], dtype=torch.int32)
    targets = [torch.cat([each[1:], end]) for each in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=END_ID).long(),
        pad_sequence(targets, batch_first=True, padding_value=-100).long(),
        pad_sequence(positions, batch_first=True).long(),
    )


def read(folder: str) -> None:
    dataset = litdata.StreamingDataset(folder, shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)
    num_tokens, begin = 0, 0.0
    for epoch in range(1 + EPOCHS):
        if epoch == 1:
            num_tokens, begin = 0, time.perf_counter()
        for _, targets, _ in loader:
            num_tokens += int((targets >= 0).sum())
    tokens_per_s = num_tokens / (time.perf_counter() - begin)
    # Not by getrusage, which would count what the process had that started this one.
    peak_kb = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"tokens_per_s": tokens_per_s, "peak_bytes": 1024 * int(peak_kb[0])}))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
