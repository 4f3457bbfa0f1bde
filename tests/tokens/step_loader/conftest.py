from __future__ import annotations

from pathlib import Path

import pytest

from tatok_pipe.tokens import format as token_format
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.loading import windows
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.step_loader.steps import COUNTS, MakeRecords, make_records, write_shard


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_format, "ROW_GROUP_ROWS", 16)
    monkeypatch.setattr(windows, "ROW_GROUP_ROWS", 16)


@pytest.fixture
def url(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> str:
    folder = tmp_path / "tokens"
    create_or_check(str(folder), token_spec, {})
    (folder / "data").mkdir()
    for shard, count in enumerate(COUNTS):
        write_shard(
            folder, f"s{shard}", token_spec, make_records(make_token_records, token_spec, shard, count)
        )
    return str(folder)
