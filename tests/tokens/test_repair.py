"""What repair removes can be made again to the same bytes, and it removes nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.checking.remedies import Remedy
from tatok_pipe.tokens.checking.repair import Outcome, Result, repair_dataset
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

from .damage import NUM_SHARDS, WITH_QUARANTINE, Made, flip, make, make_older

MakeRecords = Callable[..., list[TokenRecord]]


@pytest.fixture
def made(tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> Made:
    return make(str(tmp_path), tmp_path, token_spec, make_token_records)


def repair(made: Made) -> list[Outcome]:
    outcomes = repair_dataset(made.url, verify_dataset(made.url))
    assert all(outcome.message.isprintable() for outcome in outcomes)
    return outcomes


def results(outcomes: list[Outcome]) -> dict[str, Result]:
    return {outcome.finding.file: outcome.result for outcome in outcomes}


def forget_digest(footer: dict[bytes, bytes]) -> None:
    footer[b"tatok.content_digest"] = b'"another"'


DAMAGES: list[Callable[[Made], Any]] = [
    lambda m: m.put(m.data(2), flip(m.read(m.data(2)), 100)),
    lambda m: m.put(m.data(2), m.read(m.data(2))[:-20]),
    lambda m: m.rewrite(m.data(2), rows=lambda rows: rows.pop()),
    lambda m: m.move(m.data(2), "data/000002-00000000.parquet"),
    lambda m: m.remove(m.quarantine(WITH_QUARANTINE)),
    lambda m: m.put(m.quarantine(WITH_QUARANTINE), b"PAR1"),
    lambda m: m.put(m.data(WITH_QUARANTINE), b""),
    lambda m: [m.put(m.data(number), b"") for number in range(4)],
    # The index knows the one with the lost quarantine file as it was, and must not forget it with the other.
    lambda m: (m.put(m.data(2), b""), m.remove(m.quarantine(WITH_QUARANTINE))),
    # The first tells its source itself, of the others only the index knows.
    lambda m: [
        m.rewrite(m.data(0), rows=lambda rows: rows.clear(), footer=forget_digest),
        *(m.put(m.data(number), b"PAR1") for number in range(1, 4)),
    ],
]


def check_round(made: Made, damage: Callable[[Made], Any]) -> None:
    before, summary = made.files(), json.loads(made.read("_summary.json"))
    damage(made)
    outcomes = repair(made)
    num_removed = sum(bool(outcome.missing) for outcome in outcomes)
    assert num_removed >= 1
    assert not any(outcome.is_left_damaged for outcome in outcomes)
    present = set(storage.list_files(storage.join(made.url, "data")))
    assert {(each.kind, each.file, each.remedy) for each in verify_dataset(made.url)} == {
        (Damage.LOST, made.data(number), Remedy.RUN)
        for number in range(NUM_SHARDS)
        if f"{made.names[number]}.parquet" not in present
    }
    after = json.loads(made.read("_summary.json"))
    assert after["num_shards_committed"] == len(storage.list_files(storage.join(made.url, "data")))
    assert set(after["missing_shards"]) >= set(made.names) - {
        Path(file).stem for file in made.files() if file.startswith("data/")
    }
    made.run()
    assert made.files() == before
    assert json.loads(made.read("_summary.json")) == summary
    assert verify_dataset(made.url) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_and_the_next_run_give_the_same_bytes(made: Made, damage: Callable[[Made], Any]) -> None:
    check_round(made, damage)


@pytest.mark.s3
def test_on_s3(s3_url: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    made = make(s3_url, tmp_path, token_spec, make_token_records)
    check_round(made, lambda m: (m.put(m.data(2), b""), m.remove(m.quarantine(WITH_QUARANTINE))))


def test_a_shard_of_other_settings_is_made_again(made: Made) -> None:
    before = made.files()
    made.remove(made.data(2))
    made.write_shard(made.shards[2], dataclasses.replace(made.spec, dtf=FilterSpec("none", "gain", 0.0, 1)))
    assert results(repair(made)) == {made.data(2): Result.REMOVED, "_summary.json": Result.REWRITTEN}
    made.run()
    assert made.files() == before


def test_a_copy_under_another_name_goes_and_nothing_is_missing(made: Made) -> None:
    before = made.files()
    made.put("data/000002-00000000.parquet", made.read(made.data(2)))
    made.put("quarantine/000001-00000000.parquet", made.read(made.quarantine(WITH_QUARANTINE)))
    made.put("data/000001-00000000.parquet", made.read(made.data(1)))
    outcomes = repair(made)
    assert [outcome.missing for outcome in outcomes] == [""] * 3
    assert made.files() == before
    assert json.loads(made.read("_summary.json"))["missing_shards"] == []


def test_nothing_to_do(made: Made) -> None:
    before = made.files()
    assert repair(made) == []
    assert made.files() == before
    storage.file_info(storage.join(made.url, "_index.parquet"))  # is still there


def test_what_could_not_be_made_again_stays(made: Made) -> None:
    made.put(made.data(2), flip(made.read(made.data(2)), 100))
    made.put("data/notes.txt", b"mine")
    Path(made.shards[2]).unlink()
    before = made.files()
    (left, foreign) = repair(made)
    assert (left.result, foreign.result) == (Result.LEFT, Result.LEFT)
    assert left.is_left_damaged and foreign.is_left_damaged
    assert "its image shard cannot be read" in left.message
    assert made.files() == before


def test_leftovers_go_when_they_are_old(made: Made) -> None:
    before = made.files()
    old, young = "quarantine/000009-0123abcd.parquet", "data/.x.parquet.0123456789abcdef.tmp"
    for file in (old, young):
        made.put(file, b"anything")
    make_older(Path(made.url, old), 3700)
    outcomes = repair(made)
    assert results(outcomes) == {old: Result.REMOVED, young: Result.LEFT}
    assert not any(outcome.is_left_damaged for outcome in outcomes)
    make_older(Path(made.url, young), 3700)
    assert results(repair(made)) == {young: Result.REMOVED}
    assert made.files() == before


def test_findings_that_are_no_longer_true_are_not_acted_upon(made: Made) -> None:
    """Between a verification and a repair somebody else may have mended it."""
    before, whole = made.files(), made.read(made.data(2))
    orphan = f"quarantine/{made.names[3]}.parquet"
    made.put(made.data(2), b"")
    data = made.read(made.data(3))
    made.remove(made.data(3))
    made.put(orphan, b"x")
    make_older(Path(made.url, orphan), 3700)
    findings = verify_dataset(made.url)
    made.put(made.data(2), whole)
    made.put(made.data(3), data)
    found = results(repair_dataset(made.url, findings))
    assert found[made.data(2)] == Result.CLEAR
    assert found[orphan] == Result.CLEAR
    made.remove(orphan)
    assert made.files() == before


def test_an_image_shard_that_changed_between_verification_and_repair(made: Made) -> None:
    made.put(made.data(2), b"")
    findings = verify_dataset(made.url)
    Path(made.shards[2]).write_bytes(b"another")
    (outcome,) = repair_dataset(made.url, findings)
    assert (outcome.result, outcome.finding.file) == (Result.LEFT, made.data(2))
    assert made.read(made.data(2)) == b""


def test_a_wrong_summary_is_written_anew(made: Made) -> None:
    right = json.loads(made.read("_summary.json"))
    wrong = json.loads(made.read("_summary.json"))
    wrong["statistics"]["num_tokens"] += 1
    wrong["failed_shards"] = {"s3://b/x.tar": "why"}
    wrong["missing_shards"] = ["x-00000000"]
    made.put("_summary.json", json.dumps(wrong).encode())
    assert results(repair(made)) == {"_summary.json": Result.REWRITTEN}
    found = json.loads(made.read("_summary.json"))
    assert found["failed_shards"] == wrong["failed_shards"]  # what the statistics cannot tell is kept
    assert (found["missing_shards"], found["num_shards_planned"]) == (["x-00000000"], 5)
    assert (found["statistics"], found["run"]) == (right["statistics"], right["run"])
    for broken in (b"{", b"[]", b'{"missing_shards": 3, "failed_shards": [], "run": 1}'):
        made.put("_summary.json", broken)
        assert results(repair(made)) == {"_summary.json": Result.REWRITTEN}
        assert json.loads(made.read("_summary.json"))["statistics"] == right["statistics"]


def test_a_summary_is_written_anew_beside_damage_that_stays(made: Made) -> None:
    made.put(made.data(2), b"")
    made.put("_summary.json", b"{")
    Path(made.shards[2]).unlink()
    found = {outcome.finding.file: outcome for outcome in repair(made)}
    assert (found["_summary.json"].result, found[made.data(2)].result) == (Result.REWRITTEN, Result.LEFT)
    assert json.loads(made.read("_summary.json"))["num_shards_committed"] == 3
    assert [each.file for each in verify_dataset(made.url)] == [made.data(2)]


def test_an_index_that_counted_the_damage_is_not_used_again(made: Made) -> None:
    """The footer was wrong already when the index was made of it."""

    def double(footer: dict[bytes, bytes]) -> None:
        statistics = json.loads(footer[b"tatok.statistics"])
        statistics["entropy_total_units"] *= 2
        footer[b"tatok.statistics"] = json.dumps(statistics).encode()

    right = json.loads(made.read("_summary.json"))["statistics"]
    made.rewrite(made.data(2), footer=double)
    made.run()
    assert json.loads(made.read("_summary.json"))["statistics"] != right
    repair(made)
    made.run()
    assert json.loads(made.read("_summary.json"))["statistics"] == right
