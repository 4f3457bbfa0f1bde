"""What cannot be meant is told in one line, before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tatok_pipe import study
from tatok_pipe.commands.study.declaration import declare
from tests.entries import assert_told
from tests.pictures import encode, write_shard
from tests.study.studies import ROOT, load_study, write_images, write_tokenizer

ARM = "fixed tokenizer=[model.num_globals=0] dtf.rule=none"
TOKENIZER = f"tokenizer.config={ROOT}/configs/tokenizer/quick32.yaml"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*write_images(tmp_path, num_train=3, num_test=3), TOKENIZER, f"output.url={tmp_path}/out"]


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ([], r"arms=\[\]: expected at least one"),
        (["a dft.rule=none"], r"arms: a: unknown key dft.rule; did you mean dtf.rule\?"),
        (["a dtf.rule=best"], "arms: a: dtf.rule=best: expected one of"),
        (["a dtf.target_tokens=500"], "arms: a: dtf.target_tokens=500.0: kept patches on average 492.0"),
        (["a dtf.rule"], "arms: a: 'dtf.rule': expected key=value"),
        (["A dtf.rule=none"], "arms: 'A dtf.rule=none': expected NAME key=value"),
        (["a dtf.rule='none"], "arms: .*No closing quotation"),
        ([ARM, ARM], "arms: fixed is given twice"),
        (
            ["a tokenizer=[model.image_size=64]"],
            "arms: a: its tokenizer is for images of 64 px; expected data.image_size=32",
        ),
        (["a generator=[model.widht=64]"], "arms: a: unknown key model.widht; did you mean model.width"),
        (["a checkpoint=gone"], "arms: a: checkpoint=gone: expected a folder"),
    ],
)
def test_arms(words: list[str], arms: list[str], told: str) -> None:
    text = ", ".join("'" + arm.replace("'", "''") + "'" for arm in arms)
    assert_told(study.main, [*words, f"arms=[{text}]"], told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["stages=['all seeds=[]']"], r"stages: all: seeds=\[\]: expected at least one"),
        (["stages=['all seeds=[1, 1]']"], "each of them once"),
        (["stages=['all arms=[other]']"], "stages: all: arms=other: no such arm; expected some of fixed"),
        (["stages=['all budgets=[hours]']"], "budgets"),
        (["stage=last"], "stage=last: no such stage; expected one of all"),
        (["account=[fixed, other]"], "account: other: no such arm; expected some of fixed"),
        (["account=[fixed]"], "account=.*expected two arms or more"),
        (["data.train="], "data.train"),
        (["data.test=gone/*.tar"], "data.test: gone/.*: no .tar"),
        (["data.validation="], "data.validation: not given"),
    ],
)
def test_stages_and_data(words: list[str], changes: list[str], told: str) -> None:
    assert_told(study.main, [*words, f"arms=['{ARM}']", *changes], told)


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("test", "train", "in data.train and in data.test"),
        ("validation", "train", "in data.train and in data.validation"),
        ("validation", "test", "in data.test and in data.validation"),
    ],
)
def test_images_of_one_part_are_in_no_other(
    words: list[str], tmp_path: Path, option: str, name: str, told: str
) -> None:
    given = f"data.{option}={tmp_path}/{name}.tar"
    assert_told(study.main, [*words, f"arms=['{ARM}']", given], f"{name}.tar: {told}")


def test_where_no_tokenizer_is_trained_no_images_are_looked_at(words: list[str], tmp_path: Path) -> None:
    arm = f"a checkpoint={write_tokenizer(tmp_path / 'tokenizer')} dtf.rule=none"
    found = declare(load_study([*words, f"arms=['{arm}']", "data.validation="]))
    assert found.validation == ()


def test_a_tokenizer_without_a_ladder_for_the_rule(words: list[str], tmp_path: Path) -> None:
    checkpoint = write_tokenizer(tmp_path / "tokenizer", is_calibrated=False)
    arm = f"a checkpoint={checkpoint} dtf.rule=budget dtf.score=entropy"
    told = "arms: a: dtf.rule=budget, score=entropy: this checkpoint carries no calibration"
    assert_told(study.main, [*words, f"arms=['{arm}']"], told)
    declare(load_study([*words, f"arms=['{arm} dtf.value=3']"]))  # needs none


def test_the_first_arm_is_in_every_stage(words: list[str]) -> None:
    stages = "stages=['one', 'two arms=[half] seeds=[3]']"
    found = declare(
        load_study([*words, f"arms=['{ARM}', 'half dtf.target_tokens=36', 'all dtf.rule=none']", stages])
    )
    assert [stage.arms for stage in found.stages] == [("fixed", "half", "all"), ("fixed", "half")]
    assert found.stages[1].seeds == (3,)


def test_a_dry_run_says_hours_and_makes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([*words, f"arms=['{ARM}', 'half dtf.target_tokens=36']", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert (
        "4 generators on 3 images, measured on 3: about 0." in told and "generator          3 of    3" in told
    )
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_told_of_before_anything_is_made(words: list[str], tmp_path: Path) -> None:
    picture = encode(Image.new("RGB", (32, 32)))
    write_shard(tmp_path / "test.tar", [("one.png", picture), ("two.png", picture)])
    assert_told(
        study.main,
        [*words, f"arms=['{ARM}']", "--dry-run"],
        "data.test: one has no label; expected 0 to 2: a file .cls beside",
    )
    write_shard(tmp_path / "train.tar", [("one.png", picture), ("one.cls", b"7")])
    assert_told(
        study.main, [*words, f"arms=['{ARM}']"], "data.train: one has label 7; expected 0 to 2, or another"
    )
    assert not Path(tmp_path, "out/parts").exists()


def test_the_study_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = write_images(tmp_path, num_train=3, num_test=3)[:3]
    monkeypatch.chdir(ROOT)
    found = declare(load_study(["configs/study/headline.yaml", *words, f"output.url={tmp_path}/out"]))
    assert [stage.seeds for stage in found.stages] == [(0, 1, 2), (0,), (0,)]
    assert found.arms[0].name == "fixed" and found.arms[0].config.dtf.rule == "none"
