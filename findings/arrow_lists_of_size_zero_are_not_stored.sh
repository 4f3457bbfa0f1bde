#!/usr/bin/env bash
# One would guess: what Arrow holds as a column of lists of a fixed size, Parquet stores and gives back, for every size.
# What is so (pyarrow 26.0.1): with size 0 the array is valid and equals itself, and IPC gives it back; writing it to
# Parquet fails with a message about a list that nobody gave ("Expected all lists to be of size=0 but index 1 had
# size=1"). With size 1 and more all of it works.
# Why it matters here: a tokenizer without global tokens has rows with none of them. tokens/spec.py gives such a dataset
# a plain list for its column, so that plain grids of patches, which adaptive tokens are compared with, can be stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 2>/dev/null
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

path = f"{sys.argv[1]}/codes.parquet"


def table_of(size: int) -> pa.Table:
    return pa.table({"codes": pa.array([[7] * size] * 3, pa.list_(pa.uint16(), size))})


for size in (0, 1):
    table = table_of(size)
    table.validate(full=True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    by_ipc = pa.ipc.open_stream(sink.getvalue()).read_all().equals(table)
    try:
        pq.write_table(table, path)
        by_parquet = "the same" if pq.read_table(path).equals(table) else "another table"
    except pa.ArrowInvalid as error:
        by_parquet = str(error)
    print(f"size {size}: IPC gives it back: {by_ipc}; Parquet: {by_parquet}")
    expected = "the same" if size else "Expected all lists to be of size=0 but index 1 had size=1"
    if not by_ipc or by_parquet != expected:
        sys.exit("the behaviour has changed")
PYTHON
