from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.loading.conditions import ConditionConfig, read_embeddings
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig
from tatok_pipe.tokens.spec import TokenSpec

SIZE = 4


def config_of(folder: Path) -> ConditionConfig:
    return ConditionConfig(
        kind="embedding", embeddings_url=str(folder), embedding_size=SIZE, drop_condition=0.0
    )


def write(
    folder: Path, keys: list[str], values: np.ndarray, data_type: pa.DataType, rows_per_group: int = 7
) -> None:
    item = data_type.value_type.to_pandas_dtype()
    column = pa.array(list(values.astype(item)), data_type)
    pq.write_table(
        pa.table({"key": keys, "embedding": column}), folder / "s.parquet", row_group_size=rows_per_group
    )


def make(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    return [f"k{index}" for index in random.permutation(count)], random.normal(size=(count, SIZE))


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float32(), SIZE),
        pa.list_(pa.float16()),
        pa.list_(pa.float16(), SIZE),
    ],
    ids=str,
)
def test_embeddings_are_found_by_key(tmp_path: Path, data_type: pa.DataType) -> None:
    keys, values = make(40)
    write(tmp_path, keys, values, data_type)
    wanted = ["k3", "k17", "k3", "k39", "k0"]
    found = read_embeddings(config_of(tmp_path), "s", pa.array(wanted))
    expected = values.astype(data_type.value_type.to_pandas_dtype()).astype(np.float32)
    np.testing.assert_array_equal(found, expected[[keys.index(key) for key in wanted]])
    assert found.dtype == np.float32
    assert read_embeddings(config_of(tmp_path), "s", pa.array([], pa.string())).shape == (0, SIZE)


def test_what_is_missing_or_wrong(tmp_path: Path) -> None:
    keys, values = make(10)
    read = lambda: read_embeddings(config_of(tmp_path), "s", pa.array(keys))  # noqa: E731
    with pytest.raises(UserError, match=r"s\.parquet.*; compute the embeddings of this shard again"):
        read()
    (tmp_path / "s.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"s\.parquet: cannot be read: .*; compute the embeddings"):
        read()
    pq.write_table(pa.table({"name": keys}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match=r"has columns \['name'\], expected key and embedding"):
        read()
    write(tmp_path, keys[:-1], values[:-1], pa.list_(pa.float32()))
    with pytest.raises(UserError, match=rf"no embedding with key '{keys[-1]}' among 9"):
        read()
    pq.write_table(pa.table({"key": keys, "embedding": keys}), tmp_path / "s.parquet")
    with pytest.raises(
        UserError, match="embedding is string, expected lists of 4 numbers.*; compute the embed"
    ):
        read()
    write(tmp_path, keys, values[:, :3], pa.list_(pa.float32()))
    with pytest.raises(
        UserError, match=rf"embedding of '{keys[0]}' has 3 numbers, expected 4 numbers \(embedding_dim\)"
    ):
        read()
    values[6, 2] = np.nan
    write(tmp_path, keys, values, pa.list_(pa.float32()))
    with pytest.raises(UserError, match=rf"embedding of '{keys[6]}' has numbers that are not finite"):
        read()


def test_missing_values(tmp_path: Path) -> None:
    for data_type in (pa.list_(pa.float32()), pa.list_(pa.float32(), SIZE)):
        column = pa.array([[1.0] * SIZE, None, [2.0] * SIZE], data_type)
        pq.write_table(pa.table({"key": ["a", "b", "c"], "embedding": column}), tmp_path / "s.parquet")
        assert read_embeddings(config_of(tmp_path), "s", pa.array(["c", "a"])).tolist() == [
            [2.0] * 4,
            [1.0] * 4,
        ]
        with pytest.raises(UserError, match="embedding of 'b' is null, expected 4 numbers"):
            read_embeddings(config_of(tmp_path), "s", pa.array(["a", "b"]))


def test_the_loader_gives_each_sequence_its_own(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: Callable[..., list[TokenRecord]]
) -> None:
    records = make_token_records(token_spec, 50)
    create_or_check(str(tmp_path), token_spec, {})
    (tmp_path / "data").mkdir()
    with ShardWriter(tmp_path / "data/s.parquet", token_spec, ShardSource("/s.tar", 1)) as writer:
        writer.append(records)
    (tmp_path / "embeddings").mkdir()
    values = np.random.default_rng(0).normal(size=(50, SIZE))
    write(
        tmp_path / "embeddings",
        [record.key for record in records][::-1],
        values[::-1],
        pa.list_(pa.float32()),
    )
    dataset = read_training_set(str(tmp_path))
    spec, shards = dataset.spec, dataset.shards
    for share in (0.0, 0.3):
        config = LoaderConfig(row_tokens=40, rows_per_step=3, rows_per_microbatch=2, held_out_share=share)
        condition = config_of(tmp_path / "embeddings")
        found = 0
        for step in StepLoader([Source(str(tmp_path), shards)], spec, config, condition=condition, seed=0):
            for batch in step.microbatches:
                assert batch.embeddings is not None
                np.testing.assert_array_equal(batch.embeddings, values[batch.sequences].astype(np.float32))
                assert batch.is_conditional.all() and not batch.labels.any()
                found += batch.num_sequences
            if step.is_epoch_end:
                break
        assert found == 50 if not share else 20 < found < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "text"}, "kind='text': expected one of none, class, embedding"),
        ({"kind": "class"}, "num_classes=0: expected at least 1 with kind=class"),
        ({"kind": "embedding"}, "embeddings_url is empty"),
        ({"kind": "embedding", "embeddings_url": "x"}, "embedding_size=0: expected at least 1"),
        ({"drop_condition": 1.5}, "drop_condition=1.5: expected 0 to 1"),
    ],
)
def test_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionConfig(**options)
