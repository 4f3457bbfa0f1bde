from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data.extensions import ArrowTensorArray

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.loading.conditions import ConditionConfig, read_embeddings
from tatok_pipe.tokens.loading.embeddings import read_vectors

SIZE = 3
VALUES = np.random.default_rng(0).normal(size=(25, SIZE))
KEYS = [f"k{row}" for row in range(len(VALUES))]


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


def polars_file(column: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        frame = pl.DataFrame({"key": KEYS, "embedding": column}, schema_overrides={"key": pl.Categorical})
        frame.write_parquet(path, row_group_size=7)

    return write


def datasets_file(feature: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        features = datasets.Features({"key": datasets.Value("string"), "embedding": feature})
        content = {"key": KEYS, "embedding": VALUES.tolist()}
        datasets.Dataset.from_dict(content, features=features).to_parquet(path, batch_size=7)

    return write


def arrow_file(column: pa.Array) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table({"key": KEYS, "embedding": column}), path, row_group_size=7)


@pytest.mark.parametrize(
    ("write_file", "item"),
    [
        pytest.param(polars_file(VALUES.tolist()), "float64", id="polars list"),
        pytest.param(polars_file(VALUES), "float64", id="polars array"),
        pytest.param(polars_file(VALUES.astype(np.float16)), "float16", id="polars half"),
        pytest.param(datasets_file(datasets.List(datasets.Value("float32"))), "float32", id="datasets list"),
        pytest.param(datasets_file(datasets.List(datasets.Value("float64"), length=SIZE)), "float64", id="fixed"),
        pytest.param(datasets_file(datasets.LargeList(datasets.Value("float16"))), "float16", id="large"),
        pytest.param(arrow_file(pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES)), "float64", id="tensor"),
        pytest.param(arrow_file(ArrowTensorArray.from_numpy(VALUES)), "float64", id="ray tensor"),
    ],
)  # fmt: skip
def test_drawing_and_training_read_the_same_of_every_writer(
    tmp_path: Path, write_file: Callable[[Path], None], item: str
) -> None:
    write_file(tmp_path / "s.parquet")
    expected = VALUES.astype(item).astype(np.float32)
    np.testing.assert_array_equal(read_vectors(str(tmp_path / "s.parquet"), size=SIZE), expected)
    rows = [24, 3, 3, 11]
    found = read_embeddings(condition_of(tmp_path), "s", pa.array([KEYS[row] for row in rows]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[rows])
    assert read_embeddings(condition_of(tmp_path), "s", pa.array([], pa.string())).shape == (0, SIZE)


@pytest.fixture
def without_ray_data() -> Iterator[None]:
    """Arrow does not know Ray's type of tensors, as in a process that has not imported Ray Data."""
    kind = ArrowTensorArray.from_numpy(VALUES).type
    pa.unregister_extension_type(kind.extension_name)
    yield
    pa.register_extension_type(kind)


@pytest.mark.usefixtures("without_ray_data")
def test_tensors_of_ray_where_ray_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    arrow_file(ArrowTensorArray.from_numpy(VALUES))(path)
    assert pa.types.is_large_list(pq.read_schema(path).field("embedding").type)
    np.testing.assert_array_equal(read_vectors(str(path), size=SIZE), VALUES.astype(np.float32))
    arrow_file(ArrowTensorArray.from_numpy(VALUES[:, :, None]))(path)
    with pytest.raises(
        UserError, match=r"embedding is tensors of shape \(3, 1\), expected lists of 3 numbers"
    ):
        read_vectors(str(path), size=SIZE)


def condition_of(folder: Path) -> ConditionConfig:
    return ConditionConfig(kind="embedding", embeddings_url=str(folder), embedding_size=SIZE)


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Also where they have as many numbers."""
    turned = VALUES[:, :, None]
    squares = datasets.Features(
        {"key": datasets.Value("string"), "embedding": datasets.Array2D((1, 3), "float32")}
    )
    rows = {"key": KEYS, "embedding": VALUES[:, None].tolist()}
    for write_file in (
        arrow_file(pa.FixedShapeTensorArray.from_numpy_ndarray(turned)),
        arrow_file(pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES[:, :2].copy())),
        arrow_file(ArrowTensorArray.from_numpy(turned)),
        lambda path: datasets.Dataset.from_dict(rows, features=squares).to_parquet(path),
    ):
        write_file(tmp_path / "s.parquet")
        for read in (
            lambda: read_vectors(str(tmp_path / "s.parquet"), size=SIZE),
            lambda: read_embeddings(condition_of(tmp_path), "s", pa.array(KEYS)),
        ):
            with pytest.raises(
                UserError, match="s.parquet: embedding is .*, expected lists of 3 num"
            ) as caught:
                read()
            assert "\n" not in str(caught.value)


@pytest.mark.s3
def test_from_s3(tmp_path: Path, s3_url: str) -> None:
    write(tmp_path / "v.parquet", list(VALUES), pa.list_(pa.float64()))
    url = storage.join(s3_url, "v.parquet")
    storage.publish_file(tmp_path / "v.parquet", url, exclusive=True)
    np.testing.assert_array_equal(read_vectors(url, size=SIZE), VALUES.astype(np.float32))


@pytest.mark.parametrize(
    ("rows", "data_type", "message"),
    [
        ([], pa.list_(pa.float32()), "has no row"),
        ([[1, 2]], pa.list_(pa.float32()), "the embedding of row 0 has 2 numbers, expected 3"),
        (
            [[1, 2, 3], [1, 2, 3, 4]],
            pa.list_(pa.float32()),
            "the embedding of row 1 has 4 numbers, expected 3",
        ),
        ([[1, 2, 3], None], pa.large_list(pa.float32()), "the embedding of row 1 is null, expected 3"),
        ([[1, 2, 3], None], pa.list_(pa.float32(), 3), "the embedding of row 1 is null, expected 3"),
        ([[1, 2, 3, 4]], pa.list_(pa.float32(), 4), "the embedding of row 0 has 4 numbers, expected 3"),
        ([[1, None, 3]], pa.list_(pa.float32()), "the embedding of row 0 has numbers that are not finite"),
        ([[1, None, 3]], pa.list_(pa.float16()), "the embedding of row 0 has numbers that are not finite"),
        ([[1, 2, 3], [1, None, 3]], pa.list_(pa.int8()), "the embedding of row 1 has numbers that are not"),
        (
            [[1, float("nan"), 3]],
            pa.list_(pa.float32()),
            "the embedding of row 0 has numbers that are not finite",
        ),
        (
            [[1, -float("inf"), 3]],
            pa.list_(pa.float16()),
            "the embedding of row 0 has numbers that are not finite",
        ),
        ([[1, 2, 1e300]], pa.list_(pa.float64()), "the embedding of row 0 has numbers that are not finite"),
        ([["a", "b", "c"]], pa.list_(pa.string()), "embedding is list<element: string>"),
        ([["1", "2", "3"]], pa.list_(pa.string()), "embedding is list<element: string>"),
        ([[[1], [2], [3]]], pa.list_(pa.list_(pa.float32())), "embedding is list<element: list<"),
        ([[1, 2, 3]], pa.list_(pa.timestamp("ms")), "embedding is list<element: timestamp"),
        (["abc"], pa.string(), "embedding is string"),
        ([1.0, 2.0, 3.0], pa.float32(), "embedding is float"),
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
