"""What a training will see is known before it begins: which side has images, which classes."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.splits import Split, survey_split
from tatok_pipe.tokens.loading.training_set import read_training_set
from tests.token_datasets import make_rows, write_token_dataset


def share_below(*keys: str) -> float:
    """A share that holds out those of the keys whose hash is below the highest one's, by hand."""
    return max(zlib.crc32(key.encode()) for key in keys) / 2**32


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Five images of classes 0 to 4 in three shards, one of which has none."""
    rows = [replace(row, label=number) for number, row in enumerate(make_rows(5, num_classes=5))]
    write_token_dataset(str(tmp_path / "t"), [rows[:3], [], rows[3:]])
    return str(tmp_path / "t")


def test_the_split_is_that_of_the_hashes(url: str) -> None:
    shards = read_training_set(url).shards
    keys = sorted((f"image-{number:06d}" for number in range(5)), key=lambda key: zlib.crc32(key.encode()))
    for num_held_out in range(5):
        share = share_below(keys[num_held_out])
        found = survey_split(Source(url, shards), held_out_share=share, num_classes=7)
        trained = frozenset(int(key[-1]) for key in keys[num_held_out:])
        assert found == Split(True, num_held_out > 0, trained)
    found = survey_split(Source(url, shards), held_out_share=1 - 2**-40, num_classes=7)
    assert found == Split(False, True, frozenset())


def test_labels_that_cannot_be_trained_on_are_told(url: str, tmp_path: Path) -> None:
    shards = read_training_set(url).shards
    told = r"000000-\w+.parquet: row 2 has label 2, expected 0 to 1; set num_classes to one more than the largest"
    with pytest.raises(UserError, match=told):
        survey_split(Source(url, shards), held_out_share=0, num_classes=2)
    rows = make_rows(2)
    write_token_dataset(str(tmp_path / "none"), [[rows[0], replace(rows[1], label=None)]])
    shards = read_training_set(str(tmp_path / "none")).shards
    with pytest.raises(UserError, match="row 1 has label None, expected 0 to 8"):
        survey_split(Source(str(tmp_path / "none"), shards), held_out_share=0.5, num_classes=9)


def test_no_more_is_asked_than_is_wanted(url: str) -> None:
    shards = read_training_set(url).shards
    assert survey_split(Source(url, shards), held_out_share=0, num_classes=3).classes == {0, 1, 2}
    assert survey_split(Source("/nowhere", shards), held_out_share=0) == Split(True, False, frozenset())
    with pytest.raises(UserError, match="/nowhere"):
        survey_split(Source("/nowhere", shards), held_out_share=0.5)
