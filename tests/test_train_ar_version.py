"""Which version of its dataset a training sees, and where it stops because another one is there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage, train_ar
from tatok_pipe.commands.train_ar.dataset_version import choose_datasets
from tatok_pipe.commands.train_ar.options import InputConfig
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.loading.training_set import TrainingSet
from tatok_pipe.tokens.versions import Version, record_version
from tatok_pipe.training.checkpoint_folder import write_manifest
from tests.entries import assert_told
from tests.token_datasets import TINY, make_rows, write_token_dataset


def commit(url: str, num_shards: int) -> Version:
    write_token_dataset(url, [make_rows(60, first=60 * number) for number in range(num_shards)])
    return record_version(url, refresh_index(url, TINY), by="tokenize_corpus")


def manifest(version: Version) -> dict[str, Any]:
    """What a checkpoint of a training on the version says."""
    return {"extra": {"dataset": version.to_json()}}


def choose_dataset(config: InputConfig, earlier: dict[str, Any] | None, **given: str) -> TrainingSet:
    [chosen] = choose_datasets(config, earlier, **given)
    return chosen


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "tokens")


def test_a_new_training_sees_what_is_there_or_was_asked_for(url: str) -> None:
    first, second = commit(url, 1), commit(url, 2)
    assert choose_dataset(InputConfig(url), None).version == second
    assert choose_dataset(InputConfig(url, version=1), None).version == first
    with pytest.raises(UserError, match="has no version 7; it has 1 to 2"):
        choose_dataset(InputConfig(url, version=7), None)


def test_a_resumed_training_keeps_to_its_version(url: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = commit(url, 1), commit(url, 2)
    with caplog.at_level(logging.WARNING):
        kept = choose_dataset(InputConfig(url), manifest(first))
    assert (kept.version, kept.num_sequences) == (first, 60)
    assert f"going on with {first} of it" in caplog.text and f"what is there now is {second}" in caplog.text
    caplog.clear()
    assert choose_dataset(InputConfig(url), manifest(second)).version == second
    assert choose_dataset(InputConfig(url, version=1), manifest(first)).version == first
    moved = InputConfig(url, on_dataset_change="restart_epoch")
    assert choose_dataset(moved, manifest(first)).version == second
    assert not caplog.text


def test_a_version_that_is_gone_or_was_never_recorded_stops_it(url: str) -> None:
    first, second = commit(url, 2), commit(url, 3)
    unrecorded = Version(None, "ab" * 32, {})
    with pytest.raises(UserError, match="no version was recorded of .*, and what is there now is version 2"):
        choose_dataset(InputConfig(url), manifest(unrecorded))
    with pytest.raises(
        UserError, match=rf"on version 1 .*, input.version=2 is version 2 \({second.digest[:12]}\)"
    ):
        choose_dataset(InputConfig(url, version=2), manifest(first))
    with pytest.raises(UserError, match="no version was recorded of .*restart_epoch"):
        choose_dataset(InputConfig(url), {"extra": {}})
    storage.remove(data_url(url, TokenDataset(url).shards[0]))
    with pytest.raises(UserError, match=r"on version 1 .* 1 of its 2 token shards .*restart_epoch") as caught:
        choose_dataset(InputConfig(url), manifest(first), output_url="out")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_the_command_stops_before_anything_is_begun(url: str, tmp_path: Path) -> None:
    first = commit(url, 2)
    folder = tmp_path / "out/checkpoints/step-000000005-0123abcd"
    folder.mkdir(parents=True)
    write_manifest(folder, {"num_steps_done": 5}, manifest(first)["extra"], rank=0, num_ranks=1)
    storage.remove(data_url(url, TokenDataset(url).shards[0]))
    given = [f"input.url={url}", f"output.url={tmp_path}/out", "--dry-run"]
    assert_told(train_ar.main, given, r"holds a training on version 1 .* cannot be read any more")
    assert_told(train_ar.main, [*given, "input.version=9"], "has no version 9; it has 1 to 1")
