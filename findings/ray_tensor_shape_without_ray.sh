#!/usr/bin/env bash
# What one would guess: a column of 2 x 3 arrays that Ray Data writes as Parquet is a column of 2 x 3 arrays, or of
# nested lists, for whoever reads the file.
# What is so (Ray 2.60.0, pyarrow 26.0.1): the file holds flat lists of 6 numbers, and the shape stands in the mark of an
# Arrow type that only a process that has imported ray.data knows. There pyarrow gives arrays of 2 x 3; in any other
# process the same call gives lists of 6 without a word, which look like vectors. Arrow has a type of its own for this,
# fixed_shape_tensor, which Ray Data does not write by default.
# Why it matters here: embeddings of another shape pass for vectors, or do not, depending on what else the process has
# imported. So whoever reads such a column as vectors has to look at the field's metadata, not at its type.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[data]==2.60.0" pyarrow==26.0.1 numpy==2.4.6 pandas==3.1.1
cd "$folder"
venv/bin/python -W ignore - <<'PYTHON'
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext
from ray.data.extensions import ArrowTensorArray

print("ray", ray.__version__, "writes tensors as", DataContext.get_current().arrow_fixed_shape_tensor_format)
column = ArrowTensorArray.from_numpy(np.arange(12.0).reshape(2, 2, 3))  # what a block of Ray Data has, and write_parquet
pq.write_table(pa.table({"data": column}), "arrays.parquet")
table = pq.read_table("arrays.parquet")
print("with ray.data:   ", table.schema.field("data").type, [row.shape for row in table["data"].chunk(0).to_numpy()])
PYTHON
venv/bin/python - <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print("pyarrow", pa.__version__)
table = pq.read_table("arrays.parquet")
field = table.schema.field("data")
print("without ray.data:", field.type, table["data"].to_pylist())
mark = (field.metadata[b"ARROW:extension:name"], field.metadata[b"ARROW:extension:metadata"])
print("metadata:        ", mark)
is_as_told = (
    pa.types.is_large_list(field.type)
    and table["data"].to_pylist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]
    and mark == (b"ray.data.arrow_tensor_v2", b"[2, 3]")
)
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
