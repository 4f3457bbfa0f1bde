#!/usr/bin/env bash
# One would guess: that pyarrow writes columns with a dictionary unless told not to does no harm to numbers that hardly
# repeat: it gives the dictionary up as it grows, and what is left is as if there had been none.
# What is so (pyarrow 26.0.1): it is given up at 1 MiB, and what came before stays, the dictionary and the places in it.
# A row group of 524,288 float32 that are all over the place takes 14 % more bytes than the numbers themselves, and
# without a dictionary 12 % fewer, each with zstd. With it, it also takes about twice the time to write and to read, which
# is not looked at here. Text and small whole numbers are the better for theirs.
# Why it matters here: token datasets can keep a score and a number of nats for each patch. tokens/format.py writes
# columns of floats without a dictionary.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 numpy==2.3.5 2>/dev/null
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

path = f"{sys.argv[1]}/nats.parquet"
nats = np.random.default_rng(0).gamma(4, 1, 2048 * 256).astype(np.float32)
sizes = {}
for use_dictionary in (True, False):
    table = pa.table({"nats": nats})
    pq.write_table(table, path, row_group_size=len(nats), compression="zstd", use_dictionary=use_dictionary)
    assert pq.read_table(path).equals(table)
    column = pq.read_metadata(path).row_group(0).column(0)
    sizes[use_dictionary] = os.path.getsize(path) / nats.nbytes
    print(
        f"use_dictionary={use_dictionary}: {sizes[use_dictionary]:.3f} bytes for each byte of the numbers; encodings "
        f"{', '.join(column.encodings)}"
    )
if not (sizes[True] > 1 and sizes[False] < 0.92 * sizes[True]):
    sys.exit("the behaviour has changed")
PYTHON
