from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tatok_pipe.commands.study.design import COMMAND_KINDS, WORKER_KINDS, Design
from tatok_pipe.commands.study.making import next_batch
from tests.study.studies import ROOT, design, write_images

FIXED = "fixed tokenizer=[model.num_globals=0] dtf.rule=none"
HALF = "half dtf.rule=threshold dtf.target_tokens=36"
QUARTER = "quarter dtf.rule=threshold dtf.target_tokens=18"
TOKENIZER = f"tokenizer.config={ROOT}/configs/tokenizer/quick32.yaml"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*write_images(tmp_path, num_train=3, num_test=3), TOKENIZER]


def arms(*texts: str) -> str:
    return f"arms=[{', '.join(repr(text) for text in texts)}]"


def kinds(found: Design, without: Design) -> Counter[str]:
    """What the one has beside the other, by kind."""
    return Counter(part.kind for part_id, part in found.parts.items() if part_id not in without.parts)


def test_another_arm_costs_its_own_parts(words: list[str]) -> None:
    before = design([*words, arms(FIXED, HALF)])
    after = design([*words, arms(FIXED, HALF, QUARTER)])
    assert set(before.parts) < set(after.parts)
    # It has the tokenizer of the other adaptive arm, and a generator for each of two budgets.
    assert kinds(after, before) == {
        "tokens": 1, "test_tokens": 1, "step_time": 1, "reconstruction": 1, "generator": 2, "draw": 2, "likeness": 2,
        "nats": 2,
    }  # fmt: skip


def test_another_seed_costs_generators_alone(words: list[str]) -> None:
    before = design([*words, arms(FIXED, HALF), "stages=['all seeds=[0]']"])
    after = design([*words, arms(FIXED, HALF), "stages=['all seeds=[0, 1]']"])
    # The first arm's steps are its seconds, so three generators.
    assert kinds(after, before) == dict.fromkeys(("generator", "draw", "likeness", "nats"), 3)
    with_tokenizers = design(
        [*words, arms(FIXED, HALF), "stages=['all seeds=[0, 1]']", "tokenizer.per_seed=true"]
    )
    assert kinds(with_tokenizers, before)["tokenizer"] == 2


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ("measures.slots=8", {"draw", "likeness"}),
        ("measures.num_real=100", {"real", "likeness", "reconstruction"}),
        ("measures.classifier_epochs=2", {"classifier", "real", "likeness", "reconstruction"}),
        ("generator.steps=7", {"generator", "draw", "likeness", "nats"}),
        ("generator.timed_steps=3", {"step_time", "generator", "draw", "likeness", "nats"}),
        ("confidence=0.5", {"likeness", "reconstruction", "nats"}),
        (
            "tokenizer.options=[training.prior_steps=3]",
            {*COMMAND_KINDS, *WORKER_KINDS} - {"classifier", "real"},
        ),
    ],
)
def test_a_digest_changes_with_what_is_depended_on(words: list[str], change: str, changed: set[str]) -> None:
    before = design([*words, arms(FIXED, HALF)])
    after = design([*words, arms(FIXED, HALF), change])
    assert set(kinds(after, before)) == changed
    assert len(after.parts) == len(before.parts)


@pytest.mark.parametrize(
    "change",
    ["cpus=1", "actors.max=3", "output.url=elsewhere", "tokenizer.options=[logging.every_steps=1]",
     "generator.options=[model.width=128, model.depth=4, model.heads=4, checkpoints.every_steps=3]"],
)  # fmt: skip
def test_a_digest_stays_whatever_changes_nothing(words: list[str], change: str) -> None:
    assert design([*words, arms(FIXED), change]).parts.keys() == design([*words, arms(FIXED)]).parts.keys()


def test_other_images_are_other_parts(words: list[str], tmp_path: Path) -> None:
    before = design([*words, arms(FIXED)])
    (tmp_path / "other").mkdir()
    moved = [*write_images(tmp_path / "other", num_train=3, num_test=3), TOKENIZER]
    assert design([*moved, arms(FIXED)]).parts.keys() == before.parts.keys()  # the same, elsewhere
    write_images(tmp_path / "other", num_train=30, num_test=3)
    after = design([*moved, arms(FIXED)])
    assert "tokenizer" in kinds(after, before) and not set(after.parts) & set(before.parts)


def test_inputs_come_before_what_they_are_for_and_times_before_generators(words: list[str]) -> None:
    found = design([*words, arms(FIXED, HALF, QUARTER), "stages=['one', 'two arms=[half] seeds=[0, 1]']"])
    seen: set[str] = set()
    order = []
    for part in found.parts.values():
        assert set(part.inputs.values()) <= seen
        seen.add(part.id)
        order.append(part.kind)
    assert "step_time" not in order[order.index("generator") :]
    # Of two seeds of two arms at two budgets those of stage one are there.
    assert len(found.cells) == 6 + 4


def test_a_batch_has_its_inputs_and_no_part_beside_a_timed_one(words: list[str]) -> None:
    found = design([*words, arms(FIXED, HALF)])
    todo, done = list(found.parts.values()), set()
    while todo:
        batch = next_batch(todo, done)
        assert all(set(part.inputs.values()) <= done for part in batch)
        assert len(batch) == 1 or not {part.kind for part in batch} & {*COMMAND_KINDS, "draw", "step_time"}
        done |= {part.id for part in batch}
        todo = todo[len(batch) :]
    assert done == set(found.parts)
