"""The recipes of docs/own_training.md, run as they stand on a token dataset."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tatok_pipe import TokenLoader
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.spec import TokenSpec

PAGE = Path(__file__).parents[1] / "docs" / "own_training.md"
RECIPES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL))
COUNTS = (300, 250)  # rows of the shards


@pytest.fixture
def folder(
    tmp_path: Path,
    token_spec: TokenSpec,
    make_token_records: Callable[..., list[TokenRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """With the recipes and a dataset; the current directory."""
    spec = replace(token_spec, patch_vocab=512)
    for name, counts in (("tatok_out", COUNTS), ("more_tokens", (120,))):
        create_or_check(str(tmp_path / name), spec, {})
        (tmp_path / name / "data").mkdir()
        for number, count in enumerate(counts):
            file = tmp_path / name / f"data/s{number}.parquet"
            with ShardWriter(file, spec, ShardSource(f"/{name}-{number}.tar", 1)) as writer:
                records = make_token_records(spec, count, seed=number)
                narrow = [
                    replace(record, patch_codes=record.patch_codes.astype(np.uint16)) for record in records
                ]
                writer.append(narrow)
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("model", None)
    return tmp_path


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(name, run_name="__main__")
    return capsys.readouterr().out


def undisturbed(steps: int) -> dict[str, object]:
    loader = iter(TokenLoader("tatok_out", rows_per_step=4, row_tokens=1024, seed=0))
    return [next(loader).state for _ in range(steps)][-1]


def test_every_recipe_has_its_test() -> None:
    tested = {"model.py", "plain.py", "workers.py", "stateful.py", "ddp.py", "lit.py", "rows.py", "mixed.py"}
    assert set(RECIPES) == tested


def test_one_process_that_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nats = [float(line.split()[-2]) for line in run("plain.py", capsys).splitlines()]
    nats += [float(line.split()[-2]) for line in run("plain.py", capsys).splitlines()]
    assert len(nats) == 20 and nats[-1] < nats[0]
    assert torch.load("plain.pt")["loader"] == undisturbed(20)


def test_workers_and_a_stateful_loader(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workers.py", capsys).split() == ["6"]
    assert run("stateful.py", capsys).split() == ["6"]


def test_two_datasets_that_are_mixed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.array([line.split() for line in run("mixed.py", capsys).splitlines()], np.int64)
    assert counts[:, 0].tolist() == list(range(1, 9))
    before, since = counts[:5, 1:].sum(axis=0), counts[5:, 1:].sum(axis=0)
    assert abs(before[0] - 3 / 4 * before.sum()) <= 1  # a window ends where weights change
    assert abs(since[0] - 1 / 2 * since.sum()) <= 0.2 * since.sum()


@pytest.mark.slow
def test_lightning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lit.py", capsys).split()[-1] == "10"
    assert torch.load("lit.ckpt", weights_only=False)["tokens"] == undisturbed(10)


def test_rows_by_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rows.py", capsys).split()[0] == str(sum(COUNTS))


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path) -> None:
    """Weights after ten steps of two ranks, and of one, which has the same steps."""
    found = []
    for ranks in (2, 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "ddp.py"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found.append(torch.load("ddp.pt"))
    assert found[0]["loader"] == found[1]["loader"] == undisturbed(10)
    for name, weights in found[0]["model"].items():
        assert torch.allclose(weights, found[1]["model"][name], atol=1e-4), name
