from __future__ import annotations

from pathlib import Path

import pytest

from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens import random_rows
from tatok_pipe.tokens.loading import windows
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.token_loader.batches import (
    OTHER_COUNTS,
    MakeRecords,
    write_dataset,
)


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (token_format, windows, random_rows):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 16)


@pytest.fixture
def url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    return write_dataset(tmp_path / "tokens", token_spec, make_token_records)


@pytest.fixture
def other_url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    return write_dataset(tmp_path / "others", token_spec, make_token_records, OTHER_COUNTS, first_seed=100)
