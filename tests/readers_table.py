"""Write the page on how other programs read the columns of a token shard, by having each read one.

python -m tests.readers_table [--write docs/readers.md]

A reader that is not installed keeps the row that the page has: Spark (with a Java) and Lance come with
`pip install pyspark pylance`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tatok_pipe.records import TokenRecord
from tools.pages import write_page

from .token_datasets import TINY, make_rows, write_token_dataset

PAGE = Path(__file__).parents[1] / "docs" / "readers.md"
# What is special about a column: a ragged list of unsigned numbers, one of fixed length, nulls of three kinds, and
# floating-point numbers in a list that may be null.
COLUMNS = ("patch_codes", "global_codes", "label", "caption", "patch_entropy")
_KEY = "tatok.format_version"


@dataclass(frozen=True)
class Found:
    """What a reader hands out: types by column as it calls them, rows, and how it tells the key-value metadata."""

    types: dict[str, str]
    rows: list[dict[str, Any]]
    metadata: str = ""  # the call that tells them; empty where there is none


@dataclass(frozen=True)
class Reader:
    """A program that reads Parquet."""

    name: str
    package: str  # of the registry
    module: str
    read: Callable[[str], Found]
    is_for_all: bool = True  # whether it is in the extra `dev`

    @property
    def is_here(self) -> bool:
        try:
            version(self.package)
            import_module(self.module)
        except (ImportError, PackageNotFoundError):
            return False
        return True


def rows() -> list[TokenRecord]:
    """Rows with everything that a reader may stumble over: no code at all, the largest codes, what is null."""
    made = make_rows(4, spec=replace(TINY, global_vocab=1 << 16, patch_vocab=1 << 16))
    entropy = np.arange(16, dtype=np.float32) / 8
    none, largest = made[0], made[1]
    made[0] = replace(
        none,
        label=None,
        patch_codes=none.patch_codes[:0],
        patch_positions=none.patch_positions[:0],
        entropy_dropped=none.entropy_total,
    )
    made[1] = replace(
        largest,
        caption="a caption",
        patch_codes=np.full(2, 65535, np.uint16),
        patch_positions=np.array([0, 15], np.uint16),
        entropy_total=float(entropy.sum()),
        entropy_dropped=float(entropy[1:15].sum()),
        patch_entropy=entropy,
    )
    return made


def write_shard(folder: Path) -> str:
    """A token shard of these rows."""
    spec = replace(TINY, global_vocab=1 << 16, patch_vocab=1 << 16)
    write_token_dataset(str(folder / "tokens"), [rows()], spec=spec)
    (path,) = (folder / "tokens" / "data").iterdir()
    return str(path)


def _pyarrow(path: str) -> Found:
    pq = import_module("pyarrow.parquet")
    table = pq.read_table(path)
    told = "`table.schema.metadata`" if _KEY.encode() in (table.schema.metadata or {}) else ""
    if not told and _KEY.encode() in pq.read_metadata(path).metadata:
        told = "`parquet.read_metadata`"
    return Found({field.name: str(field.type) for field in table.schema}, table.to_pylist(), told)


def _pandas(path: str, **options: Any) -> Found:
    frame = import_module("pandas").read_parquet(path, **options)
    types = {}
    for name in COLUMNS:
        kind = str(frame[name].dtype)
        first = next((value for value in frame[name] if value is not None), None)
        if isinstance(first, np.ndarray) and kind == "object":
            kind = f"object of {first.dtype} arrays"
        types[name] = kind
    return Found(types, frame.to_dict("records"), "`frame.attrs`" if _KEY in frame.attrs else "")


def _pandas_arrow(path: str) -> Found:
    return _pandas(path, dtype_backend="pyarrow")


def _polars(path: str) -> Found:
    polars = import_module("polars")
    frame = polars.read_parquet(path)
    told = "`read_parquet_metadata`" if _KEY in polars.read_parquet_metadata(path) else ""
    return Found({name: str(kind) for name, kind in frame.schema.items()}, frame.to_dicts(), told)


def _duckdb(path: str) -> Found:
    duckdb = import_module("duckdb")
    with duckdb.connect() as database:
        found = database.execute("select * from read_parquet(?)", [path])
        types = {column[0]: str(column[1]) for column in found.description}
        read = [dict(zip(types, row, strict=True)) for row in found.fetchall()]
        keys = database.execute("select key from parquet_kv_metadata(?)", [path]).fetchall()
    return Found(types, read, "`parquet_kv_metadata`" if (_KEY.encode(),) in keys else "")


def _datasets(kind: str | None) -> Callable[[str], Found]:
    def read(path: str) -> Found:
        datasets = import_module("datasets")
        with tempfile.TemporaryDirectory() as cache:
            found = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
            told = "`info.metadata`" if _KEY in (getattr(found.info, "metadata", None) or {}) else ""
            formatted = found.with_format(kind)
            if kind == "arrow":
                table = formatted[:]
                return Found({field.name: str(field.type) for field in table.schema}, table.to_pylist(), told)
            read = [formatted[number] for number in range(len(found))]
            return Found({name: _types_of(row[name] for row in read) for name in COLUMNS}, read, told)

    return read


def _types_of(values: Any) -> str:
    """The types of what is not null, as Python names them."""
    kinds = dict.fromkeys(
        f"{type(value).__name__} of {str(value.dtype).removeprefix('torch.')}"
        if hasattr(value, "dtype") and getattr(value, "ndim", 0)
        else str(value.dtype).removeprefix("torch.") + " alone"
        if hasattr(value, "dtype")
        else type(value).__name__
        for value in values
        if value is not None
    )
    return " or ".join(kinds)


def _ray(path: str) -> Found:
    data = import_module("ray.data")
    found = data.read_parquet(path)
    schema = found.schema()
    types = dict(zip(schema.names, map(str, schema.types), strict=True))
    return Found(types, found.take_all())


def _lance(path: str) -> Found:
    lance, pq = import_module("lance"), import_module("pyarrow.parquet")
    with tempfile.TemporaryDirectory() as folder:
        dataset = lance.write_dataset(pq.read_table(path), f"{folder}/tokens.lance")
        table = dataset.to_table()
    told = "`dataset.schema.metadata`" if _KEY.encode() in (dataset.schema.metadata or {}) else ""
    return Found({field.name: str(field.type) for field in table.schema}, table.to_pylist(), told)


def _spark(path: str) -> Found:
    session = import_module("pyspark.sql").SparkSession.builder.master("local[1]")
    session = session.config("spark.ui.enabled", "false").getOrCreate()
    try:
        session.sparkContext.setLogLevel("OFF")
        frame = session.read.parquet(path)
        read = [row.asDict() for row in frame.collect()]
        return Found(dict(frame.dtypes), read)
    finally:
        session.stop()


READERS = (
    Reader("pyarrow", "pyarrow", "pyarrow", _pyarrow),
    Reader("pandas", "pandas", "pandas", _pandas),
    Reader("pandas, `dtype_backend=\"pyarrow\"`", "pandas", "pandas", _pandas_arrow),
    Reader("Polars", "polars", "polars", _polars),
    Reader("DuckDB", "duckdb", "duckdb", _duckdb),
    Reader("HF datasets", "datasets", "datasets", _datasets(None)),
    Reader("HF datasets, `numpy`", "datasets", "datasets", _datasets("numpy")),
    Reader("HF datasets, `torch`", "datasets", "datasets", _datasets("torch")),
    Reader("HF datasets, `arrow`", "datasets", "datasets", _datasets("arrow")),
    Reader("Ray Data", "ray", "ray.data", _ray),
    Reader("Lance, of pyarrow's table", "pylance", "lance", _lance, is_for_all=False),
    Reader("Spark", "pyspark", "pyspark", _spark, is_for_all=False),
)  # fmt: skip


def try_reader(reader: Reader, path: str) -> list[str]:
    """The cells of a reader: each column as it hands it out, with what is another than was written; and where the
    metadata are."""
    try:
        found = reader.read(path)
    except Exception as error:
        return [f"refuses the file: {_in_a_line(error)}"] * len(COLUMNS) + ["–"]
    cells = [_cell(found, name) for name in COLUMNS]
    return [*cells, found.metadata or "not told"]


def _cell(found: Found, name: str) -> str:
    told = f"`{found.types[name]}`"
    changes = dict.fromkeys(
        change
        for row, record in zip(found.rows, rows(), strict=True)
        if (change := _change(row.get(name), getattr(record, name)))
    )
    return ", ".join([told, *changes])


def _change(value: Any, written: Any) -> str:
    """How a value differs from what was written; empty where it does not."""
    if written is None:
        if value is None:
            return ""
        if hasattr(value, "tolist"):
            value = value.tolist()
        return f"**null is {value!r}**" if isinstance(value, str) or value == value else "**null is NaN**"
    if value is None:
        return f"**{written!r} is null**"
    if isinstance(written, np.ndarray):
        read = np.asarray(value).tolist()
        return "" if read == written.tolist() else f"**{written.tolist()} is {read}**"
    read = value.item() if hasattr(value, "item") else value
    return "" if read == written else f"**{written!r} is {read!r}**"


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:160] + " …" if len(text) > 160 else text).replace("|", "\\|")


INTRODUCTION = """# Readers

Made by `make docs-readers`, which has each of them read a token shard; change what it tries
(`tests/readers_table.py`), not this page.

A token shard is plain Parquet ([its columns](guide.md#what-comes-out)), so anything that reads Parquet reads it, each
in types of its own. The shard here has a row without a code, one with the largest code that there is (65535), and
labels, captions and entropies that are null. A cell is the type as the reader calls it; what is **bold** comes out
otherwise than it was written, and where nothing is, every value is the same.

- `patch_codes`: a list of uint16 of another length in every row; `patch_positions` is like it.
- `global_codes`: a list of uint16, of one length.
- `patch_entropy`: a list of float32; null where `record.patch_entropy=false`, the default.
- metadata: what the footer says of tokenizer, filter and source (`tatok.…`).

"""
ENDING = """
- Spark and Lance are tried where they are installed (`pip install pyspark pylance`; Spark needs a Java), the others by
  the tests of every change too.
- The readers of this package, `TokenDataset` and the loader of `train_ar`, hand out what was written.
"""


def make_page() -> str:
    before = (
        {line.split(" | ")[0]: line for line in PAGE.read_text("utf-8").splitlines()} if PAGE.exists() else {}
    )
    names = [*(f"`{name}`" for name in COLUMNS), "metadata"]
    lines = [f"| reader | version | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        path = write_shard(Path(folder))
        for reader in READERS:
            if not reader.is_here:
                lines += [before[f"| {reader.name}"]] if f"| {reader.name}" in before else []
                continue
            cells = [reader.name, version(reader.package), *try_reader(reader, path)]
            lines.append(f"| {' | '.join(cells)} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + ENDING


if __name__ == "__main__":
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    write_page("tests.readers_table", __doc__, make_page)
