"""The plan that the command makes: the bill, what it prints and writes, and what cannot be simulated."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entries import assert_told
from tests.simulation.plans import plain
from tools.simulation import make_bill, simulate
from tools.simulation.__main__ import main
from tools.simulation.options import SimulateCorpusConfig


def test_the_bill() -> None:
    config = plain(
        corpus={"num_shards": 3, "images_per_shard": 100, "input_bytes_per_image": 1 << 20,
                "output_bytes_per_image": 10**7},
        nodes={"spot_share": 0.5},
        prices={"spot": 2.0, "on_demand": 5.0, "head": 1.0, "get": 4.0, "put": 100.0, "storage": 0.5,
                "output_months": 2.0, "input_months": 0.0},
    )  # fmt: skip
    outcome = simulate(config, num_workers=2, seed=0)
    bill = make_bill(outcome, config)
    # The node of the worker without a third shard is paid for 60 s more; which of them it is the order says.
    assert (outcome.books.spot_s, outcome.books.on_demand_s) == (200, 160)
    assert bill.spot == pytest.approx(200 / 3600 * 2)
    assert bill.on_demand == pytest.approx(160 / 3600 * 5)
    assert bill.head == pytest.approx(200 / 3600)
    # 100 MiB are 7 parts of 16 MiB; four HEADs, a LIST and a PUT.
    assert bill.requests == pytest.approx(3 * (11 * 0.004 + 2 * 0.1))
    assert bill.storage == pytest.approx(3 * 2 * 0.5)  # 3 GB for two months
    assert bill.total == pytest.approx(bill.spot + bill.on_demand + bill.head + bill.requests + bill.storage)


SMALL = [
    "num_workers=[2, 4]", "num_seeds=2", "corpus.num_shards=40", "corpus.images_per_shard=100000",
    "nodes.preemptions_per_hour=5",
]  # fmt: skip


def test_the_entry_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        assert main([*SMALL, f"output.url={tmp_path / name}"]) == 0
    printed = capsys.readouterr().out
    tables = (tmp_path / "a" / "tables.md").read_text()
    assert printed == tables * 2
    assert [line.split("|")[1].strip() for line in tables.splitlines() if line] == [
        "workers",
        "------:",
        "2",
        "4",
    ] * 2
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["rows"][1]["num_workers"] == 4 and results["config"]["num_seeds"] == 2
    for row in results["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(1)
        assert row["parts"]["useful"] == row["goodput"]["median"]
        # The formula of docs/scale.md: hours = images / (rate x goodput), but for the spread of shards.
        hours = 40 * 100_000 / (4000 * 3600 * row["goodput"]["median"])
        assert row["node_hours"]["low"] * 0.97 <= hours <= row["node_hours"]["high"] * 1.03
    for name in ("results.json", "tables.md", "scale.svg", "scale.png"):
        content = (tmp_path / "a" / name).read_bytes()
        if name != "results.json":  # which names the folder
            assert content == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "scale.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "a" / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a" / "scale.png").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_workers=[0]", r"num_workers=\[0\]: expected"),
        ("num_workers=[]", "num_workers"),
        ("num_workers=[4, 4]", "every number once"),
        ("num_seeds=0", "num_seeds=0: expected at least 1"),
        ("seed=-1", "seed=-1"),
        ("corpus.num_shards=0", "corpus.num_shards=0: expected at least 1"),
        ("actor.images_per_s=0", "actor.images_per_s=0.0: expected more than 0"),
        ("actor.shard_cv=-1", "actor.shard_cv"),
        ("nodes.spot_share=1.5", "nodes.spot_share=1.5: expected 0 to 1"),
        ("nodes.slow_factor=0.5", "nodes.slow_factor=0.5: expected at least 1"),
        ("nodes.idle_timeout_s=-1", "nodes.idle_timeout_s"),
        ("faults.errors=2", "faults.errors"),
        ("failures.max_attempts=0", "failures.max_attempts=0"),
        ("driver.answer_s=-1", "driver.answer_s"),
        ("prices.spot=-1", "prices.spot=-1.0: expected at least 0"),
        ("prices.sport=1", "did you mean prices.spot"),
        ("actor.images_per_s=nan", "finite"),
    ],
)
def test_what_cannot_be_simulated_is_told(argument: str, message: str) -> None:
    assert_told(main, [argument], message)


def test_every_option_has_help_and_every_quantity_a_unit() -> None:
    for section in dataclasses.fields(SimulateCorpusConfig):
        if not dataclasses.is_dataclass(section.type) and isinstance(section.default_factory, type):
            for field in dataclasses.fields(section.default_factory):
                assert field.metadata["help"]
                assert field.metadata["unit"] or field.name == "url", field.name


def test_planning_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from tools.simulation.__main__ import main; main(['num_workers=[1]', 'num_seeds=1', "
        "'corpus.num_shards=2']); print(sorted({'ray', 'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
