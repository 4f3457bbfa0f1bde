#!/usr/bin/env bash
# One would guess: a column of int32 with a null, read by Hugging Face datasets with_format("numpy") or ("torch"), has
# one type in every row, and lists of uint16 stay what they are.
# What is so (datasets 5.2.0, numpy 2.4.6, torch 2.13.0): each row is converted by itself. Where the label is null it is
# a float NaN, in the other rows an integer, so that the type of `row["label"]` differs from row to row; and lists of
# uint16 come out as int64, four times the memory. with_format("arrow") keeps both.
# Why it matters here: a token dataset has labels that may be null and codes of uint16. A training loop that tests
# `label is None`, or takes the type of the first row for all, goes wrong without a word (docs/readers.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2>/dev/null
"$folder/venv/bin/pip" install -q datasets==5.2.0 numpy==2.4.6 2>/dev/null
cd "$folder"
HF_HOME="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

codes = pa.array([[1, 65535], [2]], pa.list_(pa.uint16()))
pq.write_table(pa.table({"codes": codes, "label": pa.array([7, None], pa.int32())}), "rows.parquet")
rows = load_dataset("parquet", data_files="rows.parquet", split="train")
seen = []
for name in ("numpy", "torch"):
    formatted = rows.with_format(name)
    told = [f"{row['label'].dtype} {row['label']}" for row in formatted]
    seen.append(f"{name}: labels {told}, codes {formatted[0]['codes'].dtype}")
table = rows.with_format("arrow")[:]
seen.append(f"arrow: labels {table['label'].type} {table['label'].to_pylist()}, codes {table['codes'].type}")
print(*seen, sep="\n")
is_as_told = seen == [
    "numpy: labels ['int32 7', 'float64 nan'], codes int64",
    "torch: labels ['torch.int64 7', 'torch.float32 nan'], codes torch.int64",
    "arrow: labels int32 [7, None], codes list<item: uint16>",
]
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
