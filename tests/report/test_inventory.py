from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.report.inventory import find_examples, take_inventory
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary

MakeRecords = Callable[..., list[TokenRecord]]
SHARDS = [f"s3://bucket/{index}.tar" for index in range(4)]
BAD = Quarantined("bad", "decode", "NotAnImage", "no signature", 10)


@pytest.fixture
def dataset(make_dataset: Any, token_spec: TokenSpec, make_token_records: MakeRecords) -> TokenDataset:
    return make_dataset(
        token_spec,
        {
            SHARDS[0]: make_token_records(token_spec, 7, seed=0),
            SHARDS[1]: (make_token_records(token_spec, 5, seed=1), [BAD, replace(BAD, key="second")]),
            SHARDS[2]: ([], [replace(BAD, error="Truncated", key="cut")]),
        },
    )


def test_one_pass_gives_what_the_dataset_says(dataset: TokenDataset) -> None:
    inventory = take_inventory(dataset)
    assert inventory.statistics.to_json() == dataset.statistics.to_json()
    assert [shard.name for shard in inventory.shards] == dataset.shards
    assert [shard.num_images for shard in inventory.shards] == [7, 5, 0]
    assert [shard.num_quarantined for shard in inventory.shards] == [0, 2, 1]
    assert [shard.source.url for shard in inventory.shards] == SHARDS[:3]
    assert sum(shard.num_tokens for shard in inventory.shards) == dataset.statistics.num_tokens
    histograms = np.sum([shard.kept_histogram for shard in inventory.shards], axis=0)
    assert (histograms == dataset.statistics.kept_histogram).all()
    files = list((Path(dataset.url) / "data").iterdir())
    assert inventory.token_bytes == sum(file.stat().st_size for file in files)
    assert inventory.num_planned is None


def test_summary_older_than_its_shards(dataset: TokenDataset) -> None:
    names = [token_shard_name(shard) for shard in SHARDS]
    write_summary(dataset.url, planned=names, failed={SHARDS[3]: "cut off", SHARDS[2]: "also"})
    path = Path(dataset.url) / "_summary.json"
    summary = json.loads(path.read_text())
    summary["missing_shards"] = names[2:]  # as a run would have written that ended before shard 2 came
    path.write_text(json.dumps(summary))
    inventory = take_inventory(dataset)
    assert inventory.num_planned == 4
    assert inventory.missing == [names[3]]
    assert inventory.failed == {SHARDS[3]: "cut off"}
    assert inventory.failed_names == [names[3]]


def test_one_example_of_each_reason(dataset: TokenDataset) -> None:
    examples = find_examples(dataset, take_inventory(dataset))
    assert {error: row.key for error, row in examples.items()} == {"NotAnImage": "bad", "Truncated": "cut"}


def test_shard_of_another_spec(dataset: TokenDataset, token_spec: TokenSpec) -> None:
    other = replace(token_spec, tokenizer_fingerprint="other")
    path = Path(dataset.shard_url(dataset.shards[0]))
    with ShardWriter(path, other, ShardSource(SHARDS[0], 1000)):
        pass
    with pytest.raises(RefusedError, match=f'{path}.*tokenizer_fingerprint: "other", not "sha256:'):
        take_inventory(dataset)


def test_file_that_is_no_shard(dataset: TokenDataset) -> None:
    Path(dataset.shard_url(dataset.shards[1])).write_bytes(b"not Parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        take_inventory(dataset)
