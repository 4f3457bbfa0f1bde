from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.embeddings import read_vectors

SIZE = 3
VALUES = np.random.default_rng(0).normal(size=(25, SIZE))


def write(path: Path, rows: list, data_type: pa.DataType, name: str = "embedding") -> str:
    table = pa.table({"key": [str(row) for row in range(len(rows))], name: pa.array(rows, data_type)})
    pq.write_table(table, path, row_group_size=7)
    return str(path)


@pytest.mark.parametrize("item", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list, lambda item: pa.list_(item, SIZE)])
def test_all_rows_in_order_of_any_list_of_numbers(tmp_path: Path, item: pa.DataType, list_of) -> None:  # noqa: ANN001
    expected = VALUES.astype(item.to_pandas_dtype())
    found = read_vectors(write(tmp_path / "v.parquet", list(expected), list_of(item)), size=SIZE)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", [[1, -2, 3]], pa.list_(pa.int16()))
    assert read_vectors(path, size=SIZE).tolist() == [[1, -2, 3]]


def test_files_of_polars(tmp_path: Path) -> None:
    for column in (VALUES.tolist(), VALUES):  # a column of lists, and of arrays
        pl.DataFrame({"embedding": column}).write_parquet(tmp_path / "v.parquet")
        found = read_vectors(str(tmp_path / "v.parquet"), size=SIZE)
        np.testing.assert_array_equal(found, VALUES.astype(np.float32))


@pytest.mark.s3
def test_from_s3(tmp_path: Path, s3_url: str) -> None:
    write(tmp_path / "v.parquet", list(VALUES), pa.list_(pa.float64()))
    url = storage.join(s3_url, "v.parquet")
    storage.publish_file(tmp_path / "v.parquet", url, exclusive=True)
    np.testing.assert_array_equal(read_vectors(url, size=SIZE), VALUES.astype(np.float32))


@pytest.mark.parametrize(
    ("rows", "data_type", "message"),
    [
        ([], pa.list_(pa.float32()), "0 rows of list<element: float>"),
        ([[1, 2]], pa.list_(pa.float32()), "1 rows of list<element: float>"),
        ([[1, 2, 3], [1, 2, 3, 4]], pa.list_(pa.float32()), "2 rows of list<element: float>"),
        ([[1, 2, 3], None], pa.list_(pa.float32()), "2 rows of list<element: float>"),
        ([[1, 2, 3, 4]], pa.list_(pa.float32(), 4), r"1 rows of fixed_size_list<element: float>\[4\]"),
        ([[1, None, 3]], pa.list_(pa.float32()), "has numbers that are not finite"),
        ([[1, float("nan"), 3]], pa.list_(pa.float32()), "has numbers that are not finite"),
        ([[1, -float("inf"), 3]], pa.list_(pa.float16()), "has numbers that are not finite"),
        ([[1, 2, 1e300]], pa.list_(pa.float64()), "has numbers that are not finite"),
        ([["a", "b", "c"]], pa.list_(pa.string()), "1 rows of list<element: string>"),
        ([["1", "2", "3"]], pa.list_(pa.string()), "1 rows of list<element: string>"),
        ([[[1], [2], [3]]], pa.list_(pa.list_(pa.float32())), "1 rows of list<element: list<"),
        ([[1, 2, 3]], pa.list_(pa.timestamp("ms")), "1 rows of list<element: timestamp"),
        (["abc"], pa.string(), "1 rows of string"),
        ([1.0, 2.0, 3.0], pa.float32(), "3 rows of float"),
    ],
)
def test_what_are_no_such_vectors(tmp_path: Path, rows: list, data_type: pa.DataType, message: str) -> None:
    path = write(tmp_path / "v.parquet", rows, data_type)
    advice = "; expected a Parquet file with a column embedding, lists of 3 numbers"
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(UserError, match=rf"v\.parquet: {message}.*{advice}") as caught,
    ):
        read_vectors(path, size=SIZE)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    advice = "expected a Parquet file with a column embedding, lists of 3 numbers"
    with pytest.raises(UserError, match=rf"v\.parquet.*; {advice}") as caught:
        read_vectors(str(path), size=SIZE)
    assert "\n" not in str(caught.value)
    for content in (
        b"",
        b"no Parquet",
        Path(write(path, [[1, 2, 3]], pa.list_(pa.float32()))).read_bytes()[:-9],
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"v\.parquet: cannot be read: .*; {advice}") as caught:
            read_vectors(str(path), size=SIZE)
        assert "\n" not in str(caught.value)
    write(path, [[1, 2, 3]], pa.list_(pa.float32()), name="vector")
    with pytest.raises(UserError, match=rf"has columns \['key', 'vector'\]; {advice}"):
        read_vectors(str(path), size=SIZE)
