#!/usr/bin/env bash
# What one would guess: a NaN in a JSON text costs its own field at most, or the text is refused by everybody.
# What is so (Python's json, DuckDB 2.0.0, Polars 2.1.0): json.dumps writes NaN, which RFC 8259 does not have. DuckDB
# calls such a text valid and reads it. Polars' json_decode raises for the whole column because of one row, and its
# json_path_match gives null, without a word, for every other field of that row, though they are in order.
# Why it matters here: a score that was NaN for one image hides width, licence and label of the image, in one reader
# and not in another. So whoever stores JSON that came with a corpus has to write null in place of NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet duckdb==2.0.0 polars==2.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

import duckdb
import polars

print("duckdb", duckdb.__version__, "polars", polars.__version__)
rows = [json.dumps({"score": score, "width": 64}) for score in (0.5, float("nan"))]
print("written:", rows)
duck = duckdb.connect()
valid = [duck.execute("SELECT json_valid(?)", [row]).fetchall()[0][0] for row in rows]
widths = [duck.execute("SELECT (?::JSON ->> 'width')::INT", [row]).fetchall()[0][0] for row in rows]
print("DuckDB: valid", valid, "width", widths)
column = polars.Series(rows)
matched = polars.select(column.str.json_path_match("$.width")).to_series().to_list()
print("Polars json_path_match: width", matched)
try:
    decoded = column.str.json_decode(polars.Struct({"width": polars.Int64})).to_list()
except polars.exceptions.ComputeError as error:
    decoded = "ComputeError"
    print("Polars json_decode:", str(error).splitlines()[0])
mended = [row.replace("NaN", "null") for row in rows]
print("with null instead:", polars.select(polars.Series(mended).str.json_path_match("$.width")).to_series().to_list())
is_as_told = (valid, widths, matched, decoded) == ([True, True], [64, 64], ["64", None], "ComputeError")
sys.exit(0 if is_as_told else "the behaviour has changed")
PYTHON
