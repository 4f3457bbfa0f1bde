#!/usr/bin/env bash
# One would guess: pyarrow loads pandas where it is asked for something of pandas (`to_pandas`, `from_pandas`).
# What is so (pyarrow 26.0.1, pandas 2.3.3): the first `pyarrow.array([1])` of a process, or any other way from Python or
# NumPy values to a column, loads it where it is installed, to ask whether what was given is a Series; so do the empty
# table of a schema and `parquet.read_table`. Here that was 40 MB and about half a second of a core, in every process that
# makes one column. Importing pyarrow, reading a `ParquetFile` and counting with pyarrow.compute do not load it.
# Why it matters here: jobs are many short processes, and the memory of a loader is told a rank. The package needs no
# pandas, but `datasets` and others beside it do, and with them the same process is larger.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 pandas==2.3.3 numpy==2.3.5 2>/dev/null
"$folder/venv/bin/python" -c "
import sys, pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({'codes': [1, 2, 3]}), sys.argv[1])" "$folder/codes.parquet"
"$folder/venv/bin/python" - "$folder/codes.parquet" <<'PYTHON'
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def megabytes() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


assert pc.sum(pq.ParquetFile(sys.argv[1]).read()["codes"]).as_py() == 6
before, memory = "pandas" in sys.modules, megabytes()
pa.array([1], pa.int32())
after = "pandas" in sys.modules
print(f"loaded after reading and counting: {before}; after pyarrow.array([1]): {after}, {megabytes() - memory} MB more")
if before or not after:
    sys.exit("the behaviour has changed")
PYTHON
